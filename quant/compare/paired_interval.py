"""Compute the interval of the mean difference of two models' scores on the same examples.

A bootstrap of 8 equal pairs says "no difference, plus or minus nothing"; of 8 with one lost it is
too narrow as well. Two bounds are used that count what was not seen, and at each end the nearer one
is taken, since both are conservative:

- Tango's score interval of paired proportions (Statistics in Medicine 17, 1998, pages 891-908),
  for right and wrong answers; partial scores enter as parts of an answer lost or won, whose
  variance they never exceed.
- Wilson's score bound (JASA 22, 1927, pages 209-212) along the mixtures of what was seen with an
  unseen share of examples that lose (or win) all they can: for partial scores that change often
  and little, where the first is wide.

Where n pairs are all equal both say 3.84 / (n + 3.84). tests/quant/test_paired_interval.py measures
how often the true difference is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
_BISECTIONS = 60  # of an interval of 2: far below what a report shows


@dataclass(frozen=True, slots=True)
class PairedSums:
    """What of n differences, got - reference, an interval of their mean hangs on.

    Attributes:
        num_examples: n, at least 1.
        lost: sum of what examples lost, positive.
        won: sum of what examples won.
        squares: sum of the squared differences.
        extreme: the most that one example can lose or win: 1 for scores from 0 to 1, more where
            examples are weighted. The mean of the differences is from -1 to 1 all the same.
    """

    num_examples: float
    lost: float
    won: float
    squares: float
    extreme: float = 1.0

    @property
    def mean(self) -> float:
        """Of the differences."""
        return (self.won - self.lost) / self.num_examples

    def repeat(self, factor: float) -> PairedSums:
        """As if there were `factor` times as many examples of the same kind."""
        return PairedSums(
            self.num_examples * factor,
            self.lost * factor,
            self.won * factor,
            self.squares * factor,
            self.extreme,
        )

    def swap(self) -> PairedSums:
        """With the two sides exchanged."""
        return PairedSums(self.num_examples, self.won, self.lost, self.squares, self.extreme)


def sum_pairs(reference_scores: ArrayLike, got_scores: ArrayLike) -> PairedSums:
    """Sums of paired scores from 0 to 1.

    Args:
        reference_scores: float[n], n at least 1.
        got_scores: float[n], of the same examples in the same order.

    Raises:
        ValueError: they are no pairs, or no scores from 0 to 1.
    """
    reference, got = check_pairs(reference_scores, got_scores)
    if not ((reference >= 0) & (reference <= 1) & (got >= 0) & (got <= 1)).all():  # NaN included
        raise ValueError("scores are not all from 0 to 1: an example was not scored")
    difference = got - reference
    return PairedSums(
        difference.size,
        lost=float(np.maximum(-difference, 0).sum()),
        won=float(np.maximum(difference, 0).sum()),
        squares=float(np.square(difference).sum()),
    )


def check_pairs(
    reference_scores: ArrayLike, got_scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as arrays of one length.

    Returns:
        reference: float64[n].
        got: float64[n].

    Raises:
        ValueError: they are no pairs.
    """
    reference = np.asarray(reference_scores, np.float64)
    got = np.asarray(got_scores, np.float64)
    if reference.ndim != 1 or reference.shape != got.shape or not reference.size:
        raise ValueError(
            f"scores have shapes {reference.shape} and {got.shape}, needed [n] twice, n at least 1"
        )
    return reference, got


def paired_interval(
    reference_scores: ArrayLike, got_scores: ArrayLike, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of mean(got) - mean(reference), in the scores' unit; arguments as of `sum_pairs`."""
    return difference_interval(sum_pairs(reference_scores, got_scores), confidence=confidence)


def difference_interval(sums: PairedSums, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the mean difference; each end alone errs in half of 1 - confidence.

    Raises:
        ValueError: a confidence that is none.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, needed between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return _bound_below(sums, z), -_bound_below(sums.swap(), z)


def count_needed(sums: PairedSums, is_enough: Callable[[PairedSums], bool], most: int) -> int:
    """How many examples of the same kind it takes; `most` if they are not enough.

    Args:
        sums: of the examples there are.
        is_enough: of the sums of more examples; once true it stays true.
        most: examples that nobody will have.
    """
    low = high = round(sums.num_examples)
    while not is_enough(sums.repeat(high / sums.num_examples)):
        if high >= most:
            return most
        low, high = high, min(2 * high, most)
    while high - low > 1 + high // 1000:  # two digits of it are shown
        middle = (low + high) // 2
        if is_enough(sums.repeat(middle / sums.num_examples)):
            high = middle
        else:
            low = middle
    return high


def _bound_below(sums: PairedSums, z: float) -> float:
    return max(_tango_below(sums, z), _mixture_below(sums, z), -1.0)


def _tango_below(sums: PairedSums, z: float) -> float:
    """The least difference that a score test doesn't reject; lost and won counted in extremes."""
    n = sums.num_examples
    lost, won = sums.lost / sums.extreme, sums.won / sums.extreme

    def is_rejected(difference: float) -> bool:
        # The likeliest share of lost answers, given the difference
        b = (2 * n - won + lost) * difference - won - lost
        c = -lost * difference * (1 - difference)
        share_lost = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * share_lost + difference * (1 - difference))
        distance = won - lost - n * difference
        return distance * distance > z * z * max(variance, 0.0)

    low, high = -1.0, (won - lost) / n
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if is_rejected(middle):
            low = middle
        else:
            high = middle
    return low * sums.extreme


def _mixture_below(sums: PairedSums, z: float) -> float:
    """The same along mixtures (1 - share) * seen + share * (all that one example can lose).

    The mean of a mixture is mean - share * reach; the test's equation is a quadratic in the share.
    """
    n, mean, square = sums.num_examples, sums.mean, sums.squares / sums.num_examples
    reach = mean + sums.extreme
    if reach <= 0:
        return -sums.extreme
    a = (n + z * z) * reach * reach
    b = z * z * (sums.extreme**2 - square + 2 * mean * reach)
    c = z * z * max(0.0, square - mean * mean)
    share = (b + math.sqrt(b * b + 4 * a * c)) / (2 * a)
    return mean - share * reach
