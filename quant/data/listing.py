"""List what is in a source before its pictures are read, and choose the examples asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .examples import Example

MAX_EXAMPLES = 1_000_000  # of one source; the largest benchmark has a tenth of it


class Entry(NamedTuple):
    """One example that a source has.

    Attributes:
        where: for messages: "data.jsonl line 12".
    """

    id: str
    task: str
    where: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source has, in its order.

    Attributes:
        name: of the source, without its folder.
        load: indices of entries -> their examples, in that order.
        notices: what a person should know of the source, a line each.
    """

    name: str
    entries: tuple[Entry, ...]
    load: Callable[[Sequence[int]], list[Example]]
    notices: tuple[str, ...] = ()


def make_listing(
    name: str,
    entries: Sequence[Entry],
    load: Callable[[Sequence[int]], list[Example]],
    notices: Sequence[str] = (),
) -> Listing:
    """Check what holds for every source.

    Raises:
        ValueError: nothing in it, far too much, or one id twice.
    """
    if not entries:
        raise ValueError(f"{name} has no examples: real ones are needed, none are made up")
    if len(entries) > MAX_EXAMPLES:
        raise ValueError(f"{name} has over {MAX_EXAMPLES} examples: cut it into several")
    most = Counter(entry.id for entry in entries).most_common(1)[0]
    if most[1] > 1:
        places = [entry.where for entry in entries if entry.id == most[0]]
        raise ValueError(f"{places[1]} has the id {most[0]!r} of {places[0]}: ids must differ")
    return Listing(name, tuple(entries), load, tuple(notices))
