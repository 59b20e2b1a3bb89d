"""Turn the scores of two models on the same examples into findings of each task and of all.

Intervals are those of paired_interval.py: the two models share the examples, so what both find
hard cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..compare.findings import TaskFinding
from ..compare.paired_interval import (
    PairedSums,
    check_pairs,
    count_needed,
    difference_interval,
    paired_interval,
    sum_pairs,
)

__all__ = [
    "MOST_EXAMPLES",
    "count_examples_needed",
    "loss_interval",
    "mcnemar_p",
    "mean_interval",
    "paired_interval",
    "score_task",
]

MOST_EXAMPLES = 10_000_000  # beyond it the answer is that more examples don't help


def mcnemar_p(reference_scores: ArrayLike, got_scores: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test: are right answers lost and won equally often?

    Args:
        reference_scores: 0 or 1 [n].
        got_scores: 0 or 1 [n], of the same examples in the same order.
    """
    reference, got = check_pairs(reference_scores, got_scores)
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
    sums = sum_pairs(reference_scores, got_scores)
    low, high = difference_interval(sums)
    return TaskFinding(
        task,
        metric,
        num_examples=len(reference_scores),
        reference=100 * float(np.mean(reference_scores)),
        got=100 * float(np.mean(got_scores)),
        low=100 * low,
        high=100 * high,
        lost=sums.lost,
        won=sums.won,
        squares=sums.squares,
    )


def mean_interval(tasks: Sequence[TaskFinding]) -> tuple[float, float]:
    """Interval of the mean difference over tasks, in points.

    The mean over tasks is a mean over all examples in which those of small tasks weigh more, and
    the most that one example can change is what one of the smallest task can.
    """
    low, high = difference_interval(join_tasks(tasks))
    return 100 * low, 100 * high


def loss_interval(sums: PairedSums) -> tuple[float, float]:
    """Least and most points lost, by the interval of the difference."""
    low, high = difference_interval(sums)
    return -100 * high, -100 * low


def join_tasks(tasks: Sequence[TaskFinding]) -> PairedSums:
    """Sums of all examples, each weighted so that their mean is the mean over tasks."""
    total = sum(task.num_examples for task in tasks)
    weights = [total / (len(tasks) * task.num_examples) for task in tasks]
    pairs = list(zip(weights, tasks, strict=True))
    return PairedSums(
        total,
        lost=sum(weight * task.lost for weight, task in pairs),
        won=sum(weight * task.won for weight, task in pairs),
        squares=sum(weight**2 * task.squares for weight, task in pairs),
        extreme=max(weights),
    )


def count_examples_needed(sums: PairedSums, limit: float) -> int | None:
    """About how many examples, if they go on like these, tell whether a loss is within a limit.

    Args:
        sums: of the examples there are, which don't tell.
        limit: in points.

    Returns:
        None: no number that anybody has; the loss is right at the limit.
    """
    is_within = -100 * sums.mean <= limit

    def is_enough(more: PairedSums) -> bool:
        least, most = loss_interval(more)
        return most <= limit if is_within else least > limit

    found = count_needed(sums, is_enough, MOST_EXAMPLES)
    return None if found >= MOST_EXAMPLES else round_up(found)


def round_up(count: int) -> int:
    """Two digits are as exact as such a number can be."""
    step = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return -(-count // step) * step
