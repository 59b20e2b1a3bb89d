"""Intervals of ratios of times: against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from vlmedge.quant.compare.ratio_interval import count_runs_needed, estimate_ratio, student_t


@pytest.mark.parametrize("num_values", [*range(2, 40), 100, 1000])
def test_students_t_is_scipys(num_values):
    assert student_t(num_values) == pytest.approx(stats.t.ppf(0.975, num_values - 1), abs=1e-4)


def test_the_interval_is_that_of_the_mean_logarithm():
    got, reference = (12.0, 11.0, 14.0, 12.5), (10.0, 10.5, 10.0, 11.0)
    logs = np.log(np.array(got) / np.array(reference))
    needed = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    low, middle, high = estimate_ratio(got, reference)
    assert (low, high) == pytest.approx(tuple(np.exp(needed)), rel=1e-4)
    assert middle == pytest.approx(stats.gmean(got) / stats.gmean(reference))


def test_what_slows_both_sides_of_a_run_widens_nothing():
    reference = (10.0, 20.0, 15.0)
    low, middle, high = estimate_ratio([2 * value for value in reference], reference)
    assert (low, middle, high) == pytest.approx((2, 2, 2))


def test_sides_exchanged_give_the_inverse():
    a, b = (3.0, 4.0, 5.0), (6.0, 6.0, 6.5)
    low, middle, high = estimate_ratio(a, b)
    assert estimate_ratio(b, a) == pytest.approx((1 / high, 1 / middle, 1 / low))


def test_one_run_has_no_spread_and_says_nothing():
    assert estimate_ratio((1.0,), (2.0,)) == (0.0, 0.5, math.inf)
    assert count_runs_needed((1.0,), (2.0,), 0.9) is None


def test_what_is_no_measurement_gives_no_number():
    assert all(map(math.isnan, estimate_ratio((0.0, 1.0), (1.0, 1.0))))
    assert all(map(math.isnan, estimate_ratio((math.nan, 1.0), (1.0, 1.0))))


def test_95_percent_of_intervals_of_five_runs_hold_the_true_ratio():
    generator, held, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        machine = generator.lognormal(0, 0.3, 5)  # slows both sides of a run
        got = 0.8 * machine * generator.lognormal(0, 0.05, 5)
        low, _, high = estimate_ratio(got, machine * generator.lognormal(0, 0.05, 5))
        held += low <= 0.8 <= high
    assert 0.93 <= held / trials <= 0.97


def test_as_many_runs_as_are_said_to_be_needed_would_tell():
    got, reference = (1.02, 0.98, 1.04, 0.97), (1.0, 1.0, 1.0, 1.0)
    needed = count_runs_needed(got, reference, 1.02)
    assert needed is not None
    logs = np.log(got)

    def reach(runs):
        return student_t(runs) * np.std(logs, ddof=1) / math.sqrt(runs)

    distance = abs(np.mean(logs) - math.log(1.02))
    assert reach(needed) <= distance < reach(needed - 1)
    assert count_runs_needed((0.9, 1.1), (1.0, 1.0), math.sqrt(0.99)) is None  # right at the limit
