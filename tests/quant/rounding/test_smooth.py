"""Migration of outliers: the published formula, exact folding, and a search that does no harm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding import smooth
from vlmedge.quant.rounding.smooth import (
    find_input_amax,
    migration_scales,
    relative_error,
    round_input,
    search_strength,
)


def make_layer(num_rows=300, num_outputs=64, row_size=96, *, outliers=4, seed=0):
    """Rows whose first channels are 30 times the others', weights that are all alike."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, row_size)).astype(np.float32)
    x[:, :outliers] *= 30
    return x, rng.standard_normal((num_outputs, row_size)).astype(np.float32)


def quantized_error(x, weight, scales):
    """W8A8 by its definition, in float64: one range of the input, a range per row of the weight."""
    x, weight, scales = (array.astype(np.float64) for array in (x, weight, scales))
    smoothed, migrated = x / scales, weight * scales
    step = np.abs(smoothed).max() / 127
    steps = np.abs(migrated).max(axis=1, keepdims=True) / 127
    got = (np.round(smoothed / step) * step) @ (np.round(migrated / steps) * steps).T
    return np.linalg.norm(got - x @ weight.T) / np.linalg.norm(x @ weight.T)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_scales_are_the_published_formula_up_to_a_common_factor(strength):
    rng = np.random.default_rng(0)
    channel_amax, weight_amax = rng.uniform(0.1, 10, (2, 50)).astype(np.float32)
    got = migration_scales(channel_amax, weight_amax, strength, exact=False)
    formula = channel_amax**strength / weight_amax ** (1 - strength)
    ratio = got / formula
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert np.exp(np.log(got).mean()) == pytest.approx(1, rel=1e-5)


def test_the_worked_example_of_the_paper_smooths_to_equal_channels():
    """Figure 5 of arXiv 2211.10438: max |X| = 2 16 2 9, max |W| = 2 1 2 1, hence s = 1 4 1 3."""
    channel_amax, weight_amax = np.float32([2, 16, 2, 9]), np.float32([2, 1, 2, 1])
    scales = migration_scales(channel_amax, weight_amax, 0.5, exact=False)
    np.testing.assert_allclose(scales / scales[0], [1, 4, 1, 3], rtol=1e-6)
    smoothed = channel_amax / scales
    np.testing.assert_allclose(
        smoothed / weight_amax / scales, smoothed[0] / weight_amax[0] / scales[0]
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e6, width=32), st.floats(0, 1e6, width=32)), min_size=1, max_size=30
    ),
    st.floats(0, 1),
)
def test_exact_scales_are_powers_of_two_and_unused_channels_stay(pairs, strength):
    channel_amax, weight_amax = np.float32(pairs).T
    scales = migration_scales(channel_amax, weight_amax, strength)
    assert (np.frexp(scales)[0] == 0.5).all()
    assert (scales[(channel_amax == 0) | (weight_amax == 0)] == 1).all()
    assert scales.min() >= 2.0**-12
    assert scales.max() <= 2.0**12


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_folding_changes_no_bit_of_any_product(dtype):
    x, weight = make_layer()
    scales = migration_scales(np.abs(x).max(0), np.abs(weight).max(0), 0.6)
    assert len(set(scales.tolist())) == 2
    x, weight = x.astype(dtype), weight.astype(dtype)
    smoothed, migrated = (x / scales).astype(dtype), (weight * scales).astype(dtype)
    np.testing.assert_array_equal(smoothed[:, None] * migrated, x[:, None] * weight)


@pytest.mark.parametrize("format", ["int8", "fp8", "int8-dynamic"])
@pytest.mark.parametrize("exact", [True, False])
def test_the_search_takes_the_least_of_the_errors_it_reports(format, exact):
    found = search_strength(*make_layer(), format, exact=exact)
    assert set(found.errors) == {None, *smooth.STRENGTHS}
    assert found.errors[found.strength] == min(found.errors.values())


def test_reported_errors_are_those_of_w8a8_by_its_definition():
    x, weight = make_layer()
    found = search_strength(x, weight)
    assert found.errors[None] == pytest.approx(quantized_error(x, weight, np.ones(96)), rel=1e-3)
    assert found.errors[found.strength] == pytest.approx(
        quantized_error(x, weight, found.scales), rel=1e-3
    )


def test_outlier_channels_are_migrated_and_the_error_falls_to_a_third():
    x, weight = make_layer()
    found = search_strength(x, weight)
    assert found.strength is not None
    assert found.scales[:4].min() > 4 * found.scales[4:].max()
    assert quantized_error(x, weight, found.scales) < quantized_error(x, weight, np.ones(96)) / 3


def test_a_layer_that_gains_nothing_is_left_alone():
    x, weight = make_layer(outliers=0)
    weight[:, :4] *= 1000  # any strength but none would trade these for worse
    x[:, :4] /= 1000
    found = search_strength(x, weight, strengths=(1.0,), exact=False)
    least = min(found.errors.values())
    assert found.errors[found.strength] == least
    even = search_strength(np.ones((4, 8), np.float32), np.ones((3, 8), np.float32))
    assert even.strength is None
    assert (even.scales == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**32))
def test_the_search_never_does_harm(rows, outputs, size, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, size)) * np.exp2(rng.integers(-6, 7, size))).astype(np.float32)
    weight = rng.standard_normal((outputs, size)).astype(np.float32)
    found = search_strength(x, weight)
    unmigrated = quantized_error(x, weight, np.ones(size))
    assert quantized_error(x, weight, found.scales) <= unmigrated * 1.001 + 1e-6


def test_calibrated_ranges_take_the_place_of_the_samples_own():
    x, weight = make_layer()
    channel_amax = np.abs(x).max(0)
    same = search_strength(x, weight, channel_amax=channel_amax)
    np.testing.assert_array_equal(same.scales, search_strength(x, weight).scales)
    channel_amax[50] *= 64
    other = search_strength(x, weight, channel_amax=channel_amax, strengths=(0.5,))
    assert other.scales[50] >= 4 * same.scales[50]


@pytest.mark.parametrize("calibrated", [False, True])
def test_channels_that_are_copies_of_one_share_its_factor(calibrated):
    x, weight = make_layer(row_size=24)
    channels = np.arange(24) // 4 // 2 * 4 + np.arange(24) % 4  # two copies of heads of 4
    amax = np.abs(x).max(0)
    found = search_strength(
        x, weight, channels=channels, channel_amax=amax if calibrated else None, strengths=(1.0,)
    )
    for channel in set(channels.tolist()):
        assert len(set(found.scales[channels == channel].tolist())) == 1
    assert found.scales[:8].min() > 2 * found.scales[8:].max()


def test_large_layers_are_searched_by_a_sample(monkeypatch):
    x, weight = make_layer(40, 30)
    monkeypatch.setattr(smooth, "MAX_ROWS", 10)
    monkeypatch.setattr(smooth, "MAX_OUTPUTS", 6)
    # what is looked at: every fourth row, every fifth output; the ranges are the whole weight's
    found = search_strength(x, weight, channel_amax=np.abs(x).max(0))
    scales = migration_scales(np.abs(x).max(0), np.abs(weight).max(0), found.strength)
    np.testing.assert_array_equal(found.scales, scales)
    assert found.errors[found.strength] == pytest.approx(
        quantized_error(x[::4], weight[::5], scales), rel=1e-3
    )


def test_rows_per_token_are_rounded_by_their_own_range():
    x = np.float32([[1, 0.5, 0.1], [100, 50, 10]])
    assert find_input_amax(x, x, "int8-dynamic") is None
    per_row = round_input(x, "int8-dynamic", None)
    np.testing.assert_allclose(per_row[1], per_row[0] * 100, rtol=1e-6)
    assert round_input(x, "int8", 100.0)[0, 2] == 0


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_the_range_found_is_that_of_all_rows_after_their_migration(method):
    x, weight = make_layer(700)
    found = search_strength(x, weight, method=method)
    expected = find_input_amax(x / found.scales, weight * found.scales, "int8", method)
    assert found.amax == expected
    if method == "minmax":
        assert found.amax == np.abs(x / found.scales).max()


def test_the_percentile_asked_for_is_the_one_taken():
    x, weight = make_layer()
    options = {"method": "percentile", "strengths": ()}
    whole, most = (search_strength(x, weight, percentile=p, **options) for p in (100, 90))
    assert whole.amax == np.abs(x).max()
    assert most.amax == pytest.approx(np.percentile(np.abs(x), 90), rel=0.02)
    assert most.errors[None] > whole.errors[None]


def test_mse_does_not_clip_what_the_weight_multiplies():
    """After migration an outlier's column is large: clipping it costs the output most."""
    x, weight = make_layer(row_size=1024, outliers=2)
    for strength in (0.2, 0.5):
        found = {
            method: search_strength(x, weight, method=method, strengths=(strength,))
            for method in ("minmax", "percentile", "mse")
        }
        errors = {method: one.errors[strength] for method, one in found.items()}
        assert errors["mse"] <= errors["minmax"] * 1.02
        assert errors["mse"] < errors["percentile"] * 0.9


def test_errors_are_relative_to_the_float_output():
    assert relative_error(np.float32([3, 4]), np.float32([3, 4.5])) == pytest.approx(0.1)
    assert relative_error(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0


def test_wrong_arguments_are_refused():
    x, weight = make_layer()
    for arguments, options, message in (
        ((x, weight[:, :5]), {}, "needed .R, K. and .N, K."),
        ((x[:0], weight), {}, "needed .R, K. and .N, K."),
        ((x, weight, "int4"), {}, "format is 'int4'"),
        ((x, weight), {"strengths": (2.0,)}, "strength is 2.0"),
        ((x * np.float32(np.nan), weight), {}, "the activations hold NaN"),
        ((x, weight * np.float32(np.inf)), {}, "the weights hold NaN"),
        ((x, weight), {"channel_amax": np.ones(5, np.float32)}, "needed .K. both"),
        ((x, weight), {"channel_amax": -np.ones(96, np.float32)}, "negative"),
    ):
        with pytest.raises(ValueError, match=message):
            search_strength(*arguments, **options)
