"""Find where the end of a growing sequence of token ids occurred before: n-grams of any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SuffixMatches:
    """For every earlier place, how many ids before it equal those at the sequence's end.

    Adding an id costs one pass over the sequence, whatever the n-gram's size.
    """

    def __init__(self, token_ids: NDArray[np.int64]) -> None:
        """Start with a sequence, int64[L]."""
        self._ids = np.zeros(max(64, 2 * len(token_ids)), np.int64)
        self._ids[: len(token_ids)] = token_ids
        self._length = len(token_ids)
        # matches[j]: length of the longest common suffix of ids[:j] and of the whole
        self._matches = np.zeros(len(self._ids), np.int64)
        self._matches[1 : self._length] = _match_suffix(token_ids.tolist())

    def push(self, token_id: int) -> None:
        """The sequence goes on."""
        length = self._length
        if length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._matches = np.concatenate([self._matches, np.zeros_like(self._matches)])
        is_same = self._ids[:length] == token_id
        # The place `length` matched itself in full; from here on it is an earlier one as well
        longer = (self._matches[:length] + 1) * is_same
        self._ids[length] = token_id
        self._matches[1 : length + 1] = longer
        self._length = length + 1

    def list_followers(self, num_ids: int, end: int | None = None) -> NDArray[np.int64]:
        """The ids that followed where the last `num_ids` ids occurred before.

        Args:
            num_ids: 0: every id of the sequence.
            end: look at the first `end` ids only, the follower included; None: at all.

        Returns:
            int64[num_followers], in the order of the sequence.
        """
        stop = self._length if end is None else min(end, self._length)
        return self._ids[:stop][self._matches[:stop] >= num_ids]


def _match_suffix(token_ids: list[int]) -> NDArray[np.int64]:
    """Common suffix lengths of ids[:j] and ids, j from 1 to L - 1: the Z function from behind."""
    backwards = token_ids[::-1]
    length = len(backwards)
    lengths = [0] * length
    left, right = 0, 0
    for place in range(1, length):
        size = min(right - place, lengths[place - left]) if place < right else 0
        while place + size < length and backwards[size] == backwards[place + size]:
            size += 1
        lengths[place] = size
        if place + size > right:
            left, right = place, place + size
    return np.array(lengths[:0:-1], np.int64)
