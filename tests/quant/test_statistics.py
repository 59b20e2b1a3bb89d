"""Bootstrap and McNemar against scipy and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vlmedge.quant.findings import TaskFinding
from vlmedge.quant.statistics import mcnemar_p, mean_interval, paired_interval, score_task


def draw_scores(seed, n, *, lost=0.1, won=0.05):
    """0/1 scores of a reference and of one that loses and wins some answers."""
    generator = np.random.default_rng(seed)
    reference = (generator.random(n) < 0.7).astype(float)
    flips = np.where(reference == 1, generator.random(n) < lost, generator.random(n) < won)
    return reference, np.where(flips, 1 - reference, reference)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("n", [3, 40, 700])
def test_the_interval_is_scipys_to_the_digit(n, confidence):
    """The same generator drawn the same way: percentile method, paired by differences."""
    generator = np.random.default_rng(n)
    reference, got = generator.random(n), generator.random(n)
    theirs = stats.bootstrap(
        (got - reference,),
        np.mean,
        n_resamples=2000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    ours = paired_interval(reference, got, confidence=confidence, num_resamples=2000, seed=5)
    assert ours == pytest.approx(tuple(theirs), abs=1e-12)


def test_resamples_drawn_in_blocks_are_those_drawn_at_once(monkeypatch):
    reference, got = draw_scores(0, 300)
    whole = paired_interval(reference, got)
    monkeypatch.setattr("vlmedge.quant.statistics._MAX_DRAWS", 1000)
    assert paired_interval(reference, got) == whole


def test_95_percent_of_intervals_hold_the_true_difference():
    lost, won, n, trials = 0.1, 0.05, 200, 400
    true = 0.3 * won - 0.7 * lost
    held = 0
    for seed in range(trials):
        low, high = paired_interval(
            *draw_scores(seed, n, lost=lost, won=won), num_resamples=1000, seed=seed
        )
        held += low <= true <= high
    # 0.95 less what the percentile method loses at this n, plus three sigma of 400 trials
    assert 0.91 <= held / trials <= 0.98


def test_pairing_makes_the_interval_narrower_than_that_of_unpaired_scores():
    reference, got = draw_scores(1, 500)
    low, high = paired_interval(reference, got)
    unpaired = stats.bootstrap(
        (got, reference),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert high - low < 0.75 * (unpaired.high - unpaired.low)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_the_interval_turns_around_with_the_sides(pairs):
    reference, got = map(np.array, zip(*pairs, strict=True))
    low, high = paired_interval(reference, got, num_resamples=200)
    back = paired_interval(got, reference, num_resamples=200)
    assert low <= high
    assert back == pytest.approx((-high, -low), abs=1e-12)
    assert min(got - reference) - 1e-12 <= low
    assert high <= max(got - reference) + 1e-12


def test_equal_scores_give_an_interval_of_nothing():
    scores = [0.0, 1.0, 0.5]
    assert paired_interval(scores, scores) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("reference", "got", "message"),
    [
        ([], [], r"shapes \(0,\)"),
        ([1, 0], [1], r"\(2,\) and \(1,\)"),
        ([[1]], [[1]], "needed"),
        ([1.0], [math.nan], "not scored"),
    ],
)
def test_scores_that_are_no_pairs_are_refused(reference, got, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(reference, got)


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
    low, high = mean_interval(tasks)
    reference, got = (np.concatenate(side) for side in zip(*scores, strict=True))
    needed = 100 * np.array(paired_interval(reference, got))
    assert (low, high) == pytest.approx(tuple(needed), abs=0.25)


def test_the_interval_of_one_task_is_its_own():
    task = TaskFinding("a", "anls", 10, reference=80, got=79, low=-4, high=1)
    assert mean_interval([task]) == pytest.approx((-4, 1))
