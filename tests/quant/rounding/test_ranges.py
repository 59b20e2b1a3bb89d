"""Ranges against their definitions written out: loops over bins, and quantizing the values."""

import ml_dtypes
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding.histogram import Histogram
from vlmedge.quant.rounding.ranges import (
    GRIDS,
    MSE_SHARES,
    expected_error,
    find_amax,
    find_output_amax,
)


def make_values(kind, size=200_000, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "gaussian":
        values = rng.standard_normal(size)
    elif kind == "laplace":
        values = rng.laplace(size=size)
    elif kind == "gelu":
        values = rng.standard_normal(size) * 2
        values *= scipy.special.ndtr(values)
    else:
        values = rng.standard_normal(size) * np.where(rng.random(size) < 0.002, 20, 1)
    return values.astype(np.float32)


KINDS = ("gaussian", "laplace", "gelu", "outliers")


def quantize(values, amax, format):
    """Quantize and dequantize, in float64 but for the cast."""
    top = {"int8": 127, "fp8": 448}[format]
    scaled = np.clip(values.astype(np.float64) * top / amax, -top, top)
    if format == "int8":
        return np.round(scaled) * amax / top
    return scaled.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * amax / top


def entropy_threshold(counts, width):
    """The calibration's pseudocode of the GTC 2017 talk, range by range, with scipy's KL."""
    divergence = {}
    for size in range(128, 2049):
        reference = counts[:size].astype(np.float64)
        reference[-1] += counts[size:].sum()
        levels = np.arange(size) * 128 // size
        occupied = counts[:size] > 0
        mass = np.bincount(levels, counts[:size], 128)
        num_occupied = np.bincount(levels, occupied, 128)
        candidate = np.where(occupied, (mass / np.maximum(num_occupied, 1))[levels], 0)
        divergence[size] = scipy.stats.entropy(reference, candidate)
    best = min(divergence, key=lambda size: divergence[size])
    return (best + 0.5) * width


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_the_published_calibration_range_by_range(kind):
    histogram = Histogram.of(make_values(kind, 20_000))
    expected = entropy_threshold(histogram.counts, histogram.edges[1])
    assert find_amax(histogram, "entropy") == min(expected, histogram.amax)


def test_minmax_is_the_largest_magnitude_to_the_bit():
    values = make_values("gaussian")
    assert find_amax(Histogram.of(values), "minmax") == np.abs(values).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [1, 50, 99, 99.9, 99.99, 99.999])
def test_percentile_is_that_of_the_values_to_a_bin(kind, percentile):
    values = make_values(kind)
    histogram = Histogram.of(values)
    expected = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    got = find_amax(histogram, "percentile", percentile=percentile)
    assert abs(got - expected) <= histogram.edges[1]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50),
    st.lists(st.floats(0.01, 100), min_size=2, max_size=5),
)
def test_a_higher_percentile_is_never_a_smaller_range_and_all_is_the_largest(values, percentiles):
    histogram = Histogram.of(np.float32(values))
    ranges = [find_amax(histogram, "percentile", percentile=share) for share in sorted(percentiles)]
    assert ranges == sorted(ranges)
    assert ranges[-1] <= histogram.amax
    assert find_amax(histogram, "percentile", percentile=100) == histogram.amax


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_expected_error_is_what_quantizing_the_values_gives(kind, format):
    """Tolerance 1 %: the values are those of a histogram's bins, taken to lie evenly in them."""
    values = make_values(kind)
    histogram = Histogram.of(values)
    for share in (0.1, 0.3, 0.7, 1.0):
        amax = histogram.amax * share
        error = quantize(values, amax, format) - values
        expected = np.linalg.norm(error) / np.linalg.norm(values)
        assert expected_error(histogram, amax, format) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_finds_the_range_that_quantizing_the_values_finds(kind, format):
    """Within 0.5 % of the least error over the same grid, and never worse than min-max."""
    values = make_values(kind, 50_000)
    histogram = Histogram.of(values)

    def measure(amax):
        return np.linalg.norm(quantize(values, amax, format) - values)

    got = find_amax(histogram, "mse", format=format)
    least = min(map(measure, (histogram.amax * MSE_SHARES[format])[::2]))
    assert measure(got) <= least * 1.005
    assert measure(got) <= measure(histogram.amax) * 1.001


def test_mse_clips_a_gaussian_where_theory_has_the_optimum():
    """The optimal uniform quantizer of a gaussian with 255 levels spans +-3.95 sigma or so.

    Derived here from the distribution itself: rounding step^2 / 12, clipping by integration.
    """
    span = np.linspace(3, 5, 400)
    step = span / 127
    tail = scipy.stats.norm.sf(span)
    clipped = 2 * ((1 + span**2) * tail - span * scipy.stats.norm.pdf(span))
    optimum = span[np.argmin(step**2 / 12 * (1 - 2 * tail) + clipped)]
    got = find_amax(Histogram.of(make_values("gaussian", 2_000_000)), "mse")
    assert got == pytest.approx(optimum, rel=0.03)


def test_outliers_are_clipped_by_all_but_minmax():
    histogram = Histogram.of(make_values("outliers"))
    for method in ("percentile", "entropy", "mse"):
        assert find_amax(histogram, method) < 0.9 * histogram.amax


def test_fp8_takes_no_less_than_the_whole_range_of_ordinary_values():
    """Its relative precision makes clipping a loss; levels may shift within an octave."""
    histogram = Histogram.of(make_values("outliers"))
    assert histogram.amax * 0.9 < find_amax(histogram, "mse", format="fp8") <= histogram.amax * 2


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_output_range_is_the_best_for_the_weighted_errors_of_the_values(kind, format):
    """Against quantizing the values over the same grid; within 1 % of the least error."""
    x = make_values(kind, 40_000).reshape(1000, 40)
    channel_weights = np.random.default_rng(1).uniform(0, 4, 40) ** 2

    def measure(amax):
        error = quantize(x, amax, format) - x
        return float((error**2 @ channel_weights).sum())

    got = find_output_amax(x, channel_weights, format=format)
    grid = np.abs(x).max() * MSE_SHARES[format][::2]
    assert measure(got) <= min(map(measure, grid)) * 1.01


def test_output_range_of_channels_that_count_alike_is_that_of_the_values():
    x = make_values("laplace", 40_000).reshape(1000, 40)
    histogram = Histogram.of(x)
    got = find_output_amax(x, np.full(40, 3.0))
    best = find_amax(histogram, "mse")
    assert expected_error(histogram, got) <= expected_error(histogram, best) * 1.01


def test_output_range_keeps_the_outliers_that_count_and_clips_those_that_do_not():
    x = make_values("gaussian", 40_000).reshape(1000, 40)
    x[:, 3] *= 10
    weights = np.ones(40)
    weights[3] = 100
    assert find_output_amax(x, weights) > 0.8 * np.abs(x).max()
    weights[3] = 1e-6
    assert find_output_amax(x, weights) < 0.2 * np.abs(x).max()


def test_output_range_of_zeros_is_zero_and_wrong_sizes_are_refused():
    assert find_output_amax(np.zeros((3, 4), np.float32), np.ones(4)) == 0
    for x, weights in (((3, 4), 5), ((0, 4), 4), ((4,), 4)):
        with pytest.raises(ValueError, match="its channels' weights"):
            find_output_amax(np.ones(x, np.float32), np.ones(weights))
    with pytest.raises(ValueError, match="NaN or infinite"):
        find_output_amax(np.ones((3, 4), np.float32), np.full(4, np.nan))


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_ranges_scale_with_the_values(method):
    values = make_values("laplace", 20_000)
    once = find_amax(Histogram.of(values), method)
    assert find_amax(Histogram.of(values * np.float32(2.0**-40)), method) == once * 2.0**-40


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_zeros_have_no_range_one_value_has_its_own_and_nothing_is_an_error(method):
    assert find_amax(Histogram.of(np.zeros(5, np.float32)), method) == 0
    got = find_amax(Histogram.of(np.full(5, 1.5, np.float32)), method)
    assert got == pytest.approx(1.5, rel=1 / 1024)
    with pytest.raises(ValueError, match="no activations were seen"):
        find_amax(Histogram.empty(), method)


def test_grids_are_the_formats_magnitudes():
    assert GRIDS["int8"].tolist() == list(range(128))
    assert GRIDS["fp8"][[0, 1, 8, -1]].tolist() == [0, 2**-9, 2**-6, 448]
    assert (np.diff(GRIDS["fp8"]) > 0).all()


def test_wrong_options_are_refused():
    histogram = Histogram.of(np.ones(3, np.float32))
    for options, message in (
        ({"method": "max"}, "range method is 'max'"),
        ({"method": "mse", "format": "int4"}, "format is 'int4'"),
        ({"method": "percentile", "percentile": 0}, "percentile is 0"),
        ({"method": "percentile", "percentile": 101}, "percentile is 101"),
        ({"method": "entropy", "format": "fp8"}, "entropy"),
    ):
        with pytest.raises(ValueError, match=message):
            find_amax(histogram, **options)
    with pytest.raises(ValueError, match="amax is 0"):
        expected_error(histogram, 0)
