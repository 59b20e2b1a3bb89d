"""A verdict -> who is to blame, line by line, as terminals and JUnit show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .blame import describe_blame
from .findings import LayerFinding
from .grammar import counted
from .unusual import describe_layer
from .verdict import Verdict

UNUSUAL = "unusual for its precision"
SUSPECT = "suspect by its own error (not measured)"


def list_blame(verdict: Verdict, most: int) -> Iterator[str]:
    """The measured causes, the guilty layers, and those that are only unusual.

    Args:
        verdict: of a check.
        most: layers of a kind that are named.
    """
    for blame in verdict.blames:
        yield f"cause of {blame.limit}: {describe_blame(blame)}"
    yield from _list_layers("guilty", verdict.guilty, most)
    yield from _list_layers(name_unusual(verdict), list_innocent(verdict), most)


def list_innocent(verdict: Verdict) -> tuple[LayerFinding, ...]:
    """Layers that are unusual and not found guilty."""
    guilty = {finding.layer for finding in verdict.guilty}
    return tuple(finding for finding in verdict.unusual if finding.layer not in guilty)


def name_unusual(verdict: Verdict) -> str:
    """What unusual layers are called: suspects where nobody has measured the cause."""
    return UNUSUAL if verdict.blames or verdict.guilty else SUSPECT


def _list_layers(word: str, layers: Sequence[LayerFinding], most: int) -> Iterator[str]:
    yield from (f"{word}: {describe_layer(finding)}" for finding in layers[:most])
    if (rest := len(layers) - most) > 0:
        yield f"{word}: {counted(rest, 'more layer')}"
