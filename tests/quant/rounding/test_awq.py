"""AWQ-style scales against their definition written out, and against rounding to nearest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding import awq
from vlmedge.quant.rounding.awq import search_scales
from vlmedge.quant.rounding.block_scales import pack_searched
from vlmedge.quant.rounding.weight_only import pack_rows, unpack_rows


def make_layer(num_rows=300, num_outputs=64, row_size=192, *, salient=6, seed=0):
    """A few channels 20 times as large as the others, all weights alike: AWQ's setting."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, row_size)).astype(np.float32)
    x[:, rng.choice(row_size, salient, replace=False)] *= 20
    return x, rng.standard_normal((num_outputs, row_size)).astype(np.float32)


def output_error(x, weight, rounded):
    x, weight, rounded = (array.astype(np.float64) for array in (x, weight, rounded))
    wanted = x @ weight.T
    return np.linalg.norm(x @ rounded.T - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("bits", [4, 8])
def test_salient_channels_are_scaled_and_unseen_outputs_are_clearly_better(bits):
    inputs, weight = make_layer(600)
    x, held_out = inputs[:300], inputs[300:]
    found = search_scales(x, weight, bits, 64)
    salient = np.abs(x).mean(axis=0) > 5
    assert found.scales[salient].min() > 1.5 * found.scales[~salient].max()
    mean_square = np.square(x).mean(axis=0)
    packed = pack_searched(weight * found.scales, bits, 64, mean_square / found.scales**2)
    got = output_error(
        held_out / found.scales, weight * found.scales, unpack_rows(*packed, bits, 192)
    )
    plain = output_error(held_out, weight, unpack_rows(*pack_rows(weight, bits, 64), bits, 192))
    assert got < 0.6 * plain


def test_scales_are_powers_of_the_mean_magnitude_normalized_as_in_the_papers_code():
    x, weight = make_layer()
    found = search_scales(x, weight, 4, 64)
    formula = np.abs(x).mean(axis=0) ** found.exponent
    formula /= np.sqrt(formula.max() * formula.min())
    assert 0 < found.exponent <= 1
    np.testing.assert_allclose(found.scales, formula, rtol=1e-4)


def test_reported_errors_are_those_of_the_layers_output():
    x, weight = make_layer()
    found = search_scales(x, weight, 4, 64, grid=5)
    assert list(found.errors) == ["nearest", 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    nearest = unpack_rows(*pack_rows(weight, 4, 64), 4, 192)
    assert found.errors["nearest"] == pytest.approx(output_error(x, weight, nearest), rel=1e-3)
    mean_square = np.square(x).mean(axis=0) / found.scales**2
    packed = pack_searched(weight * found.scales, 4, 64, mean_square)
    rounded = unpack_rows(*packed, 4, 192) / found.scales
    assert found.error == pytest.approx(output_error(x, weight, rounded), rel=1e-3)
    assert found.error == min(found.errors.values())


def test_exact_scales_are_powers_of_two_and_still_clearly_better_than_nearest():
    x, weight = make_layer()
    found = search_scales(x, weight, 4, 64, exact=True)
    assert (np.frexp(found.scales)[0] == 0.5).all()
    assert found.error < 0.7 * found.errors["nearest"]


def test_channels_that_are_copies_of_one_share_its_scale():
    x, weight = make_layer()
    channels = np.arange(192) % 96
    found = search_scales(x, weight, 4, 64, channels=channels)
    np.testing.assert_array_equal(found.scales[:96], found.scales[96:])
    assert len(set(found.scales.tolist())) > 10


def test_channels_without_input_keep_their_scale():
    x, weight = make_layer()
    x[:, 50] = 0
    found = search_scales(x, weight, 4, 64)
    assert found.scales[50] == 1
    assert search_scales(np.zeros_like(x), weight, 4, 64).error == 0


def test_inputs_that_are_all_alike_are_left_alone():
    found = search_scales(np.ones((5, 64), np.float32), make_layer(row_size=64)[1], 4, 32)
    np.testing.assert_array_equal(found.scales, np.ones(64))


def test_large_layers_are_searched_by_a_sample(monkeypatch):
    x, weight = make_layer(40, 30)
    monkeypatch.setattr(awq, "MAX_ROWS", 10)
    monkeypatch.setattr(awq, "MAX_OUTPUTS", 6)
    found = search_scales(x, weight, 4, 64)
    nearest = unpack_rows(*pack_rows(weight[::5], 4, 64), 4, 192)
    expected = output_error(x[::4], weight[::5], nearest)
    assert found.errors["nearest"] == pytest.approx(expected, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 100), st.integers(0, 2**32))
def test_any_layer_gets_finite_positive_scales_and_the_least_of_the_errors(
    rows, outputs, size, seed
):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, size)) * np.exp2(rng.integers(-6, 7, size))).astype(np.float32)
    weight = rng.standard_normal((outputs, size)).astype(np.float32)
    found = search_scales(x, weight, 4, 32, grid=4)
    assert np.isfinite(found.scales).all()
    assert found.scales.min() > 0
    tried = [error for exponent, error in found.errors.items() if exponent != "nearest"]
    assert found.error == min(tried)


def test_wrong_arguments_are_refused():
    x, weight = make_layer()
    for arguments, options, message in (
        ((x, weight[:, :5], 4, 64), {}, "needed .R, K. and .N, K."),
        ((x[:0], weight, 4, 64), {}, "needed .R, K. and .N, K."),
        ((x, weight, 4, 48), {}, "block size 48 is not supported"),
        ((x, weight, 5, 64), {}, "5 bits are not supported"),
        ((x, weight, 4, 64), {"grid": 0}, "grid is 0"),
        ((x * np.float32(np.nan), weight, 4, 64), {}, "the activations hold NaN"),
        ((x, weight * np.float32(np.inf), 4, 64), {}, "the weights hold NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            search_scales(*arguments, **options)


def test_positive_block_scales_are_what_the_errors_were_measured_with():
    x, weight = make_layer()
    found = search_scales(x, weight, 4, 64, grid=5, positive=True)
    nearest = unpack_rows(*pack_rows(weight, 4, 64, positive=True), 4, 192)
    assert found.errors["nearest"] == pytest.approx(output_error(x, weight, nearest), rel=1e-3)
    mean_square = np.square(x).mean(axis=0) / found.scales**2
    packed = pack_searched(weight * found.scales, 4, 64, mean_square, positive=True)
    rounded = unpack_rows(*packed, 4, 192) / found.scales
    assert found.error == pytest.approx(output_error(x, weight, rounded), rel=1e-3)
    signed = search_scales(x, weight, 4, 64, grid=5)
    assert signed.errors["nearest"] < found.errors["nearest"]
    assert signed.error < found.error < 0.7 * found.errors["nearest"]
