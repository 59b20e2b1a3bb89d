"""Scores of two models on the same examples -> what of their difference is more than noise.

Paired: the two share the examples, so examples are resampled and not scores; what both find hard
cancels out (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .findings import TaskFinding

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
_MAX_DRAWS = 1 << 22  # examples drawn at once: 32 MiB of indices


def paired_interval(
    reference_scores: ArrayLike,
    got_scores: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(got) - mean(reference), in the scores' unit.

    Where no example differs it is (0, 0): with n examples that rules out a share of differing ones
    above 3 / n only.

    Args:
        reference_scores: float[n], n at least 1.
        got_scores: float[n], of the same examples in the same order.
        confidence: share of intervals that hold the true difference.
        num_resamples: sets of n examples drawn with replacement.
        seed: the same scores give the same interval.
    """
    reference, got = _paired(reference_scores, got_scores)
    difference = got - reference
    if not np.all(np.isfinite(difference)):
        raise ValueError("scores hold NaN or infinity: an example was not scored")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, needed between 0 and 1")
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    rows = max(1, _MAX_DRAWS // difference.size)
    for start in range(0, num_resamples, rows):
        part = means[start : start + rows]
        drawn = generator.integers(0, difference.size, (part.size, difference.size))
        part[:] = difference[drawn].mean(axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, (tail, 100 - tail))
    return float(low), float(high)


def mcnemar_p(reference_scores: ArrayLike, got_scores: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test: are right answers lost and won equally often?

    Args:
        reference_scores: 0 or 1 [n].
        got_scores: 0 or 1 [n], of the same examples in the same order.
    """
    reference, got = _paired(reference_scores, got_scores)
    if not np.isin((reference, got), (0, 1)).all():
        raise ValueError("McNemar's test needs scores of 0 and 1")
    lost, won = int(np.sum(reference > got)), int(np.sum(reference < got))
    # Of the examples that differ, each is lost or won with 1/2 if nothing changed
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2 ** (lost + won))


def score_task(
    task: str, metric: str, reference_scores: Sequence[float], got_scores: Sequence[float]
) -> TaskFinding:
    """Both sides' scores from 0 to 1, an example each, as one task's finding in points of 100."""
    reference, got = _paired(reference_scores, got_scores)
    low, high = paired_interval(reference, got)
    return TaskFinding(
        task,
        metric,
        num_examples=reference.size,
        reference=100 * float(reference.mean()),
        got=100 * float(got.mean()),
        low=100 * low,
        high=100 * high,
    )


def mean_interval(tasks: Sequence[TaskFinding]) -> tuple[float, float]:
    """Interval of the mean difference over tasks, in points: independent errors add in squares."""
    differences = [task.got - task.reference for task in tasks]
    mean = sum(differences) / len(tasks)
    below = math.hypot(*(d - task.low for d, task in zip(differences, tasks, strict=True)))
    above = math.hypot(*(task.high - d for d, task in zip(differences, tasks, strict=True)))
    return mean - below / len(tasks), mean + above / len(tasks)


def _paired(
    reference_scores: ArrayLike, got_scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reference = np.asarray(reference_scores, np.float64)
    got = np.asarray(got_scores, np.float64)
    if reference.ndim != 1 or reference.shape != got.shape or not reference.size:
        raise ValueError(
            f"scores have shapes {reference.shape} and {got.shape}, needed [n] twice, n at least 1"
        )
    return reference, got
