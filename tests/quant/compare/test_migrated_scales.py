"""A scale counts as migrated only where producer and consumer both have it."""

import numpy as np
import pytest

from vlmedge.quant.compare.migrated_scales import Ratios, choose_scales, fit_ratios

COUNT = 256


def see(scales, rounding=0.0, seed=0):
    """Ratios of rows whose bundle's weights are the reference's / scales, rounded."""
    random = np.random.default_rng(seed)
    theirs = random.standard_normal((len(scales), COUNT))
    ours = theirs / np.reshape(scales, (-1, 1))
    ours *= 1 + rounding * random.standard_normal(ours.shape)
    return fit_ratios((ours * theirs).sum(1), (theirs**2).sum(1), (ours**2).sum(1), COUNT)


SCALES = 2.0 ** (np.arange(16) % 5 - 2)


@pytest.mark.parametrize("rounding", [0.0, 0.01, 0.1])
def test_a_scale_that_stands_on_both_sides_is_found(rounding):
    found = choose_scales(see(SCALES, rounding), see(SCALES, rounding, seed=1))
    np.testing.assert_allclose(found, SCALES, rtol=max(1e-6, rounding / 3))


@pytest.mark.parametrize("factor", [4.0, 1.5, 0.5, 1 / 3])
@pytest.mark.parametrize("rounding", [0.0, 0.1])
def test_rows_that_no_column_answers_are_no_migration(factor, rounding):
    """The rows times a factor: the ratio is 1 / factor on their side alone."""
    found = choose_scales(see(np.full(16, 1 / factor), rounding), see(np.ones(16), rounding, 1))
    assert found.tolist() == [1.0] * 16


def test_one_row_that_no_column_answers_is_no_migration():
    scales = np.ones(16)
    scales[3] = 0.25
    assert choose_scales(see(scales), see(np.ones(16))).tolist() == [1.0] * 16


def test_columns_alone_are_no_migration_either():
    assert choose_scales(see(np.ones(16)), see(np.full(16, 2.0))).tolist() == [1.0] * 16


@pytest.mark.parametrize("factor", [4.0, 1.5])
def test_a_fault_on_top_of_a_migration_stays_with_the_rows_that_have_it(factor):
    """Rows times a factor after a migration: the columns' word is taken, so the rows are wrong."""
    found = choose_scales(see(SCALES / factor, 0.01), see(SCALES, 0.01, seed=1))
    np.testing.assert_allclose(found, SCALES, rtol=0.01)


def test_rows_that_are_no_multiples_leave_the_word_to_the_columns():
    random = np.random.default_rng(3)
    ours, theirs = random.standard_normal((2, 16, COUNT))
    noise = fit_ratios((ours * theirs).sum(1), (theirs**2).sum(1), (ours**2).sum(1), COUNT)
    assert not noise.is_known.any()
    np.testing.assert_allclose(choose_scales(noise, see(SCALES)), SCALES, rtol=1e-6)
    assert choose_scales(noise, see(np.ones(16))).tolist() == [1.0] * 16


def test_scales_too_small_for_one_rounded_column_are_seen_by_all_of_them():
    """1 % in columns of 4 bits: nothing for one channel, certain for a thousand."""
    random = np.random.default_rng(5)
    scales = np.exp(random.normal(0, 0.01, 1000))
    found = choose_scales(see(scales), see(scales, 0.1, seed=1))
    np.testing.assert_allclose(found, scales, rtol=1e-4)
    left = choose_scales(see(scales), see(np.ones(1000), 0.1, seed=1))
    assert (left == 1).mean() > 0.99  # but for the few that chance puts beyond 4 sigma


def test_channels_that_nobody_uses_are_left_alone():
    zeros = np.zeros(4)
    ratios = fit_ratios(zeros, zeros, zeros, COUNT)
    assert ratios.is_one.all()
    assert choose_scales(ratios, ratios).tolist() == [1.0] * 4


def test_a_row_that_is_zero_in_one_model_alone_is_no_multiple():
    ratios = fit_ratios(np.zeros(1), np.ones(1), np.zeros(1), COUNT)
    assert isinstance(ratios, Ratios)
    assert not ratios.is_known.any()
