"""Say line by line who is to blame, as terminals and JUnit show it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ..compare.findings import LayerFinding
from ..files.grammar import counted
from ..gate.blame import describe_blame
from ..gate.unusual import describe_layer, find_unusual
from ..gate.verdict import Verdict

UNUSUAL = "unusual for its precision"
SUSPECT = "suspect by its own error (not measured)"


def list_blame(verdict: Verdict, most: int) -> Iterator[str]:
    """The measured causes, the guilty layers, the unusual ones first, and those only unusual.

    Args:
        verdict: of a check.
        most: layers of a kind that are named.
    """
    for blame in verdict.blames:
        yield f"cause of {blame.limit}: {describe_blame(blame)}"
    names = {finding.layer for finding in verdict.unusual}
    ranked = sorted(verdict.guilty, key=lambda finding: finding.layer not in names)
    yield from _list_layers("guilty", ranked, most, names)
    yield from _list_layers(SUSPECT, verdict.suspects, most)
    yield from _list_layers(UNUSUAL, list_innocent(verdict), most)


def list_innocent(verdict: Verdict) -> tuple[LayerFinding, ...]:
    """Layers that are unusual, and neither guilty nor suspect."""
    others = {finding.layer for finding in (*verdict.guilty, *verdict.suspects)}
    return tuple(finding for finding in verdict.unusual if finding.layer not in others)


def list_unusual(layers: Sequence[LayerFinding], most: int) -> Iterator[str]:
    """Unusual layers of a check that was held to no gate."""
    yield from _list_layers(UNUSUAL, find_unusual(layers), most)


def _list_layers(
    word: str, layers: Sequence[LayerFinding], most: int, unusual: Collection[str] = ()
) -> Iterator[str]:
    for finding in layers[:most]:
        more = f", {UNUSUAL}" if finding.layer in unusual else ""
        yield f"{word}: {describe_layer(finding)}{more}"
    if (rest := len(layers) - most) > 0:
        yield f"{word}: {counted(rest, 'more layer')}"
