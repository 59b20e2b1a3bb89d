"""Intervals of paired scores: against published figures, other derivations, and by enumeration."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from vlmedge.quant.compare.paired_interval import PairedSums, difference_interval, paired_interval

Z2 = stats.norm.ppf(0.975) ** 2
COUNTS = st.integers(1, 200).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))
)


def interval_of(n, lost, won):
    return difference_interval(PairedSums(n, lost, won, lost + won))


def test_the_published_example_of_tangos_interval():
    """Fagerland, Lydersen, Laake, Statistics in Medicine 33, 2014: 1 and 7 of 21 patients."""
    low, high = interval_of(21, 7, 1)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_the_ends_are_those_of_the_score_test_maximized_numerically(counts):
    """The likelihood under the hypothesis is maximized by scipy instead of in closed form."""
    n, lost, won = counts
    if lost + won > n:
        lost, won = min(lost, n // 2), min(won, n - n // 2)
    equal = n - lost - won
    for end in interval_of(n, lost, won):
        if not -0.999 < end < 0.999:
            continue

        def minus_log(share_lost, end=end):
            shares = (share_lost, share_lost + end, 1 - 2 * share_lost - end)
            pairs = zip((lost, won, equal), shares, strict=True)
            return -sum(k * math.log(max(p, 1e-300)) for k, p in pairs if k)

        bounds = (max(0.0, -end) + 1e-12, (1 - end) / 2 - 1e-12)
        found = optimize.minimize_scalar(
            minus_log, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        variance = (2 * found + end - end * end) / n
        assert ((won - lost) / n - end) ** 2 / variance == pytest.approx(Z2, rel=2e-3)


@pytest.mark.parametrize("n", [1, 8, 120, 765])
def test_equal_answers_leave_room_for_what_was_not_seen(n):
    low, high = paired_interval([1.0] * n, [1.0] * n)
    assert (low, high) == pytest.approx((-Z2 / (n + Z2), Z2 / (n + Z2)))
    # As much as an exact test leaves: with that share lost, n equal ones come in 2.5 % of cases
    assert n == 1 or (1 + low) ** n == pytest.approx(0.025, abs=0.02)


def test_where_only_losses_are_seen_the_bound_is_wilsons():
    for n, lost in ((8, 1), (50, 3), (120, 1)):
        wilson = stats.binomtest(lost, n).proportion_ci(0.95, method="wilson")
        assert -interval_of(n, lost, 0)[0] == pytest.approx(wilson.high, abs=1e-9)


def test_eight_examples_with_one_lost_say_next_to_nothing():
    low, high = interval_of(8, 1, 0)
    assert low < -0.45
    assert high > 0.2


SHARES = (0.0, 0.002, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3)


@pytest.mark.parametrize("n", [5, 8, 20, 50, 120])
def test_intervals_hold_the_true_difference_by_enumeration(n):
    """All outcomes of n right and wrong answers, with their probabilities: no chance in it."""
    kept = [(b, c) for b in range(min(n, 75) + 1) for c in range(min(n - b, 75) + 1)]
    ends = {pair: interval_of(n, *pair) for pair in kept}
    least, worst = 1.0, 0.0
    for lost in SHARES:
        for won in SHARES:
            if lost + won == 0:
                continue
            true, chance = won - lost, stats.multinomial(n, (lost, won, 1 - lost - won))
            pairs = np.array([(b, c, n - b - c) for b, c in kept])
            held = np.array([ends[b, c][0] <= true <= ends[b, c][1] for b, c in kept])
            rosy = np.array([ends[b, c][0] > true for b, c in kept])
            p = chance.pmf(pairs)
            least = min(least, float(p[held].sum()))
            if won <= lost:
                worst = max(worst, float(p[rosy].sum()))
    assert least >= 0.93
    assert worst <= 0.03  # losses that are larger than the interval's worse end; nominal 0.025


GRADED = {
    "a rare total loss in small noise": (
        lambda g, n: np.where(g.random(n) < 0.03, -1.0, g.normal(0, 0.03, n)),
        -0.03,
    ),
    "a rare total loss in small gains": (
        lambda g, n: np.where(g.random(n) < 0.05, -1.0, 0.02),
        -0.031,
    ),
    "some answers read worse": (
        lambda g, n: np.where(g.random(n) < 0.1, -g.uniform(0.5, 1, n), 0.0),
        -0.075,
    ),
    "halves": (lambda g, n: g.choice([-0.5, 0, 0.5], n, p=[0.15, 0.8, 0.05]), -0.05),
    "much noise": (lambda g, n: g.uniform(-0.5, 0.5, n), 0.0),
}


@pytest.mark.parametrize("n", [8, 40, 300])
@pytest.mark.parametrize("name", GRADED)
def test_partial_scores_are_held_at_least_as_often(name, n):
    draw, true = GRADED[name]
    generator = np.random.default_rng(n)
    held, trials = 0, 400
    for _ in range(trials):
        d = np.clip(draw(generator, n), -1, 1)
        low, high = paired_interval(np.maximum(-d, 0), np.maximum(d, 0))
        held += low <= true <= high
    assert held / trials >= 0.93


def test_many_small_changes_are_not_taken_for_lost_answers():
    """A bootstrap's width is the yardstick where there are enough examples for one."""
    d = np.random.default_rng(0).normal(-0.01, 0.05, 2000)
    low, high = paired_interval(np.maximum(-d, 0), np.maximum(d, 0))
    plain = stats.bootstrap((d,), np.mean, rng=np.random.default_rng(1)).confidence_interval
    assert plain.high - plain.low < high - low < 2 * (plain.high - plain.low)


def test_pairing_makes_the_interval_narrower_than_that_of_unpaired_scores():
    generator = np.random.default_rng(1)
    reference = (generator.random(500) < 0.7).astype(float)
    flips = generator.random(500) < 0.08
    got = np.where(flips, 1 - reference, reference)
    low, high = paired_interval(reference, got)
    unpaired = math.sqrt(Z2 * (reference.var() + got.var()) / 500)
    assert high - low < 0.75 * 2 * unpaired


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_the_interval_turns_around_with_the_sides_and_holds_the_mean(pairs):
    reference, got = map(np.array, zip(*pairs, strict=True))
    low, high = paired_interval(reference, got)
    assert -1 <= low <= np.mean(got - reference) + 1e-9
    assert np.mean(got - reference) - 1e-9 <= high <= 1
    assert paired_interval(got, reference) == pytest.approx((-high, -low), abs=1e-9)


@given(st.integers(1, 40), st.integers(0, 40))
def test_more_confidence_and_fewer_examples_make_it_wider(n, lost):
    lost = min(lost, n)
    sums = PairedSums(n, lost, 0, lost)
    low, high = difference_interval(sums)
    wider = difference_interval(sums, confidence=0.99)
    assert wider[0] <= low <= high <= wider[1]
    more = difference_interval(sums.repeat(4))
    assert more[1] - more[0] <= high - low


@pytest.mark.parametrize(
    ("reference", "got", "message"),
    [
        ([], [], r"shapes \(0,\)"),
        ([1, 0], [1], r"\(2,\) and \(1,\)"),
        ([[1]], [[1]], "needed"),
        ([1.0], [math.nan], "not scored"),
        ([1.0], [80.0], "from 0 to 1"),
    ],
)
def test_scores_that_are_no_pairs_are_refused(reference, got, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(reference, got)


def test_a_confidence_that_is_none_is_refused():
    with pytest.raises(ValueError, match="confidence is 95, needed between 0 and 1"):
        paired_interval([1.0], [1.0], confidence=95)
