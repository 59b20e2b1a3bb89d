"""McNemar against scipy, and what tasks say together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vlmedge.quant.compare.paired_interval import PairedSums, paired_interval
from vlmedge.quant.gate.statistics import (
    count_examples_needed,
    loss_interval,
    mcnemar_p,
    mean_interval,
    score_task,
)


def draw_scores(seed, n, *, lost=0.1, won=0.05):
    """0/1 scores of a reference and of one that loses and wins some answers."""
    generator = np.random.default_rng(seed)
    reference = (generator.random(n) < 0.7).astype(float)
    flips = np.where(reference == 1, generator.random(n) < lost, generator.random(n) < won)
    return reference, np.where(flips, 1 - reference, reference)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(lost, won, equal):
    reference = [1] * lost + [0] * won + [1] * equal
    got = [0] * lost + [1] * won + [1] * equal
    if not reference:
        return
    needed = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar_p(reference, got) == pytest.approx(needed, rel=1e-9)


def test_mcnemar_refuses_partial_scores():
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar_p([0.5, 1], [1, 1])


def test_a_task_is_scored_in_points_and_says_whether_its_loss_is_noise():
    few = score_task("receipt", "anls", [1, 1, 0, 0.5], [1, 0, 1, 0.5])
    assert (few.reference, few.got, few.num_examples) == (62.5, 62.5, 4)
    assert few.low < 0 < few.high
    assert few.is_noise
    many = score_task("receipt", "anls", [1.0] * 100, [1.0] * 80 + [0.0] * 20)
    assert many.loss == pytest.approx(20)
    assert not many.is_noise
    assert -30 < many.low < -20 < many.high < -10


def test_the_interval_of_a_mean_over_tasks_is_that_of_all_their_examples():
    """Tasks of one size: the mean over tasks is the mean over examples."""
    scores = [draw_scores(seed, 300) for seed in range(4)]
    tasks = [score_task(str(i), "exact_match", *pair) for i, pair in enumerate(scores)]
    reference, got = (np.concatenate(side) for side in zip(*scores, strict=True))
    needed = 100 * np.array(paired_interval(reference, got))
    assert mean_interval(tasks) == pytest.approx(tuple(needed), abs=1e-9)


def test_the_interval_of_one_task_is_its_own():
    task = score_task("a", "anls", [1.0, 0.5, 1.0, 0.2], [1.0, 0.25, 0.0, 0.9])
    assert mean_interval([task]) == pytest.approx((task.low, task.high))


def test_a_small_task_widens_the_mean_as_far_as_one_of_its_examples_weighs():
    """Nothing differs: as much may be lost unseen as if all examples were of the small task."""
    equal = [score_task(name, "anls", [1.0] * n, [1.0] * n) for name, n in (("a", 20), ("b", 980))]
    low, high = mean_interval(equal)
    n, weight, z2 = 1000, 1000 / (2 * 20), stats.norm.ppf(0.975) ** 2
    assert (low, high) == pytest.approx((-100 * weight * z2 / (n + z2), -low))


def test_means_over_tasks_of_other_sizes_are_held_as_often_as_they_say():
    generator, held, trials = np.random.default_rng(3), 0, 300
    sizes, lost = (20, 60, 200), (0.05, 0.1, 0.02)
    true = -100 * np.mean(lost)
    for _ in range(trials):
        tasks = [
            score_task("t", "m", np.ones(n), (generator.random(n) >= p).astype(float))
            for n, p in zip(sizes, lost, strict=True)
        ]
        low, high = mean_interval(tasks)
        held += low <= true <= high
    assert held / trials >= 0.93


@pytest.mark.parametrize(
    ("lost", "won", "n", "limit"),
    [(0, 0, 8, 0.5), (0, 0, 120, 2.0), (1, 0, 60, 4.0), (3, 1, 100, 3.0), (6, 1, 100, 4.0)],
)
def test_as_many_examples_as_are_said_to_be_needed_tell_and_half_of_them_do_not(
    lost, won, n, limit
):
    sums = PairedSums(n, lost, won, lost + won)
    needed = count_examples_needed(sums, limit)
    assert needed is not None
    assert needed > n

    def tells(count):
        least, most = loss_interval(sums.repeat(count / n))
        return most <= limit or least > limit

    assert tells(needed)
    assert not tells(max(n, needed / 2))


def test_no_number_of_examples_tells_of_a_loss_right_at_the_limit():
    assert count_examples_needed(PairedSums(100, 2, 0, 2), 2.0) is None
    assert count_examples_needed(PairedSums(100, 0, 0, 0), 0.0) is None
