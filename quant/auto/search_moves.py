"""Search for few moves, in their order, with which a test passes.

Grown by doubling and bisection: the shortest beginning of the order that passes. Then every move is
taken back that is not needed, from the least worthwhile on, in halves, quarters and so on down to
single ones. If more moves never do harm, none of what is left can be spared; in any case the test
has passed what is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .moves import Move

Holds = Callable[[Sequence[Move]], bool]


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found.

    Attributes:
        moves: in their order; all of them if nothing passed.
        holds: whether the test passed them.
        num_tries: how often it was asked.
    """

    moves: tuple[Move, ...]
    holds: bool
    num_tries: int


def search_moves(moves: Sequence[Move], holds: Holds, max_tries: int) -> Searched:
    """Find moves that pass; without any the test is known to fail.

    Args:
        moves: the most worthwhile first.
        holds: the test.
        max_tries: of the test; if they are used up, what has passed so far is returned.
    """
    test = _Counter(holds, max_tries)
    low, high = 0, min(1, len(moves))
    while not (high and test(moves[:high])):
        if high == len(moves) or not test.left:
            return Searched(tuple(moves), False, test.count)
        low, high = high, min(2 * high, len(moves))
        if test.left == 1:  # all that can be done with it
            high = len(moves)
    while high - low > 1 and test.left:
        middle = (low + high) // 2
        if test(moves[:middle]):
            high = middle
        else:
            low = middle
    kept = _take_back(list(moves[:high]), test)
    return Searched(tuple(kept), True, test.count)


def _take_back(kept: list[Move], test: _Counter) -> list[Move]:
    """Moves without those that are not needed."""
    starts: dict[str, str] = {}  # layer -> its format before any move
    for move in kept:
        starts.setdefault(move.layer, move.before)
    size = max(1, len(kept) // 2)
    while test.left:
        end, has_shrunk = len(kept), False
        while end > 0 and test.left:
            start = max(0, end - size)
            fewer = _drop_orphans(kept[:start] + kept[end:], starts)
            if fewer and test(fewer):
                kept, has_shrunk = fewer, True
            end = start
        if size == 1 and not has_shrunk:
            break
        size = max(1, size // 2)
    return kept


def _drop_orphans(moves: Sequence[Move], starts: Mapping[str, str]) -> list[Move]:
    """Without second steps of layers whose first was taken back."""
    reached = dict(starts)
    found = []
    for move in moves:
        if reached[move.layer] == move.before:
            reached[move.layer] = move.after
            found.append(move)
    return found


class _Counter:
    """A test that may be asked so often, and is asked nothing twice."""

    def __init__(self, holds: Holds, max_tries: int) -> None:
        self._holds, self._max = holds, max_tries
        self._known: dict[tuple[Move, ...], bool] = {}

    @property
    def count(self) -> int:
        return len(self._known)

    @property
    def left(self) -> int:
        return self._max - self.count

    def __call__(self, moves: Sequence[Move]) -> bool:
        key = tuple(moves)
        if key not in self._known:
            self._known[key] = self._holds(moves)
        return self._known[key]
