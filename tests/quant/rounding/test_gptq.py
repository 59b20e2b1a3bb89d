"""GPTQ against the paper's algorithm with its inverse, against brute force, and against nearest."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding import gptq, int8
from vlmedge.quant.rounding.block_scales import pack_searched, search_block_scales
from vlmedge.quant.rounding.gptq import add_moments, output_error, quantize_blocks, quantize_rows
from vlmedge.quant.rounding.weight_only import pack_rows, unpack_rows


def make_inputs(num_rows, size, *, rank=8, seed=0):
    """Correlated: a few directions, some noise, channels of unlike size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, rank)) @ rng.standard_normal((rank, size))
    x += 0.5 * rng.standard_normal((num_rows, size))
    return (x * np.exp(rng.normal(0, 0.5, size))).astype(np.float32)


def make_weight(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_moments(x):
    return (x.T @ x) / np.float32(len(x))


def quantize_as_published(weight, moments, scales, *, damping=0.01, order=None):
    """arXiv 2210.17323, algorithm 1, column by column, in float64 with the inverse it asks for."""
    order = np.arange(weight.shape[1]) if order is None else order
    left = weight.astype(np.float64)[:, order]
    hessian = moments.astype(np.float64)[np.ix_(order, order)]
    hessian += damping * np.diagonal(hessian).mean() * np.eye(len(hessian))
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    levels = np.zeros(left.shape)
    for k in range(left.shape[1]):
        levels[:, k] = np.clip(np.round(left[:, k] / scales), -127, 127)
        error = (left[:, k] - levels[:, k] * scales) / inverse[k, k]
        left[:, k:] -= np.outer(error, inverse[k, k:])
    restored = np.empty_like(levels)
    restored[:, order] = levels
    return restored


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [5, 130, 300])  # chunks are of 128
def test_levels_are_those_of_the_published_algorithm(size, act_order):
    """But for values next to a tie, which float32 and float64 may see on different sides."""
    weight, moments = make_weight((20, size)), make_moments(make_inputs(600, size))
    scales = int8.channel_scales(weight) * 8  # coarse: errors matter
    order = np.argsort(-np.diagonal(moments), kind="stable") if act_order else None
    expected = quantize_as_published(weight, moments, scales, order=order)
    got = quantize_rows(weight, moments, scales, act_order=act_order)
    rows_that_differ = (got != expected).any(axis=1).mean()
    assert rows_that_differ <= 0.1


def test_blocks_are_those_of_the_published_algorithm_with_their_scales():
    size, block_size = 64, 16
    weight, moments = make_weight((10, size)), make_moments(make_inputs(300, size))
    packed, scales = quantize_blocks(weight, moments, 4, block_size, act_order=False)
    got = unpack_rows(packed, scales, 4, size)
    # With the scales it found, every column is rounded as the paper has it.
    left = weight.astype(np.float64)
    hessian = moments.astype(np.float64)
    hessian += 0.01 * np.diagonal(hessian).mean() * np.eye(size)
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for k in range(size):
        if k % block_size == 0:
            block = left[:, k : k + block_size].astype(np.float32)
            mean_squares = np.diagonal(moments)[k : k + block_size]
            expected_scales = search_block_scales(block, 4, block_size, mean_squares)[:, 0]
            close = np.isclose(scales[:, k // block_size], expected_scales, rtol=1e-3)
            assert close.mean() >= 0.9  # two steps may be nearly as good
        steps = scales[:, k // block_size].astype(np.float64)
        values = np.clip(np.round(left[:, k] / steps), -8, 7) * steps
        assert np.isclose(got[:, k], values, atol=1e-5).mean() >= 0.8
        error = (left[:, k] - got[:, k]) / inverse[k, k]
        left[:, k:] -= np.outer(error, inverse[k, k:])


def test_two_columns_are_rounded_as_well_as_brute_force_can_after_the_first():
    """The second level is the best there is, given the first: checked against all 255 of them."""
    moments = np.float32([[1.0, 0.95], [0.95, 1.0]])
    weight, scales = make_weight((30, 2)), np.full(30, 0.4, np.float32)
    levels = quantize_rows(weight, moments, scales, damping=1e-6, act_order=False)
    for row, got in zip(weight, levels, strict=True):
        assert got[0] == np.rint(row[0] / np.float32(0.4))

        def cost(second, row=row, got=got):
            error = row - np.float32(0.4) * np.array([got[0], second])
            return error @ moments @ error

        assert cost(got[1]) <= min(map(cost, range(-127, 128))) * (1 + 1e-4) + 1e-9


def test_small_layers_come_close_to_the_best_levels_of_all():
    """Brute force over both neighbours of each weight: nearest is far from it, GPTQ is not."""
    x = make_inputs(200, 8, rank=2, seed=3)
    weight, moments = make_weight((12, 8)), make_moments(x)
    scales = np.full(12, 0.5, np.float32)
    floors = np.floor(weight / scales[:, None])
    choices = np.array(list(itertools.product((0, 1), repeat=8)))
    costs = {}
    for name, levels in (
        ("gptq", quantize_rows(weight, moments, scales)),
        ("nearest", int8.quantize(weight, scales)),
    ):
        error = weight - int8.dequantize(levels, scales)
        costs[name] = np.einsum("nj,jk,nk->n", error, moments, error)
    error = weight[:, None] - (floors[:, None] + choices) * scales[:, None, None]
    best = np.einsum("ncj,jk,nck->nc", error, moments, error).min(axis=1)
    assert costs["gptq"].sum() < 2 * best.sum()
    assert costs["nearest"].sum() > 3 * best.sum()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (4, 128), (8, 64)])
def test_blocks_clearly_beat_nearest_on_inputs_not_seen_before(bits, block_size, act_order):
    weight = make_weight((48, 300))
    inputs = make_inputs(1500, 300)
    x, held_out = inputs[:1000], inputs[1000:]
    wanted = held_out @ weight.T

    def error(packed, scales):
        return np.linalg.norm(held_out @ unpack_rows(packed, scales, bits, 300).T - wanted)

    nearest = error(*pack_rows(weight, bits, block_size))
    got = error(*quantize_blocks(weight, make_moments(x), bits, block_size, act_order=act_order))
    assert got < 0.6 * nearest


@pytest.mark.parametrize("act_order", [False, True])
def test_rows_of_int8_clearly_beat_nearest_on_inputs_not_seen_before(act_order):
    weight = make_weight((48, 300))
    inputs = make_inputs(1500, 300)
    x, held_out = inputs[:1000], inputs[1000:]
    scales = int8.channel_scales(weight)
    wanted = held_out @ weight.T

    def error(levels):
        return np.linalg.norm(held_out @ int8.dequantize(levels, scales).T - wanted)

    got = error(quantize_rows(weight, make_moments(x), scales, act_order=act_order))
    assert got < 0.6 * error(int8.quantize(weight, scales))


def test_weights_beyond_a_clipped_range_get_the_last_level_of_their_sign():
    weight = make_weight((4, 40))
    levels = quantize_rows(weight, np.eye(40, dtype=np.float32), np.full(4, 0.005, np.float32))
    beyond = np.abs(weight) > 0.7
    assert beyond.any()
    np.testing.assert_array_equal(levels[beyond], np.sign(weight[beyond]) * 127)


@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_without_correlation_are_rounded_to_nearest(act_order):
    weight = make_weight((9, 40))
    moments = np.diag(np.linspace(1, 2, 40).astype(np.float32))
    scales = int8.channel_scales(weight)
    got = quantize_rows(weight, moments, scales, act_order=act_order)
    np.testing.assert_array_equal(got, int8.quantize(weight, scales))
    packed, block_scales = quantize_blocks(weight, moments, 4, 16, act_order=act_order)
    expected = pack_searched(weight, 4, 16, np.diagonal(moments))
    again, nearest = (unpack_rows(*p, 4, 40) for p in ((packed, block_scales), expected))
    np.testing.assert_allclose(again, nearest, atol=1e-6)


@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_were_divided_are_those_measured_after_the_division(act_order):
    x, weight = make_inputs(400, 96), make_weight((12, 96))
    input_scales = np.exp2(np.random.default_rng(2).integers(-3, 4, 96)).astype(np.float32)
    after = make_moments(x / input_scales)
    migrated = weight * input_scales
    scales = int8.channel_scales(migrated)
    np.testing.assert_array_equal(
        quantize_rows(
            migrated, make_moments(x), scales, input_scales=input_scales, act_order=act_order
        ),
        quantize_rows(migrated, after, scales, act_order=act_order),
    )
    got = quantize_blocks(
        migrated, make_moments(x), 4, 32, input_scales=input_scales, act_order=act_order
    )
    expected = quantize_blocks(migrated, after, 4, 32, act_order=act_order)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_a_channel_that_calibration_never_used_is_rounded_to_nearest():
    x, weight = make_inputs(300, 64), make_weight((6, 64))
    x[:, 10] = 0
    scales = int8.channel_scales(weight)
    got = quantize_rows(weight, make_moments(x), scales)
    np.testing.assert_array_equal(got[:, 10], int8.quantize(weight, scales)[:, 10])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_end_within_a_block_and_blocks_of_zeros_are_packed(bits, act_order):
    x, weight = make_inputs(200, 75), make_weight((5, 75))
    weight[2, 32:64] = 0
    moments = make_moments(x)
    packed, scales = quantize_blocks(weight, moments, bits, 32, act_order=act_order)
    expected_packed, expected_scales = pack_rows(weight, bits, 32)
    assert packed.shape == expected_packed.shape
    assert packed.dtype == expected_packed.dtype
    assert scales.shape == expected_scales.shape
    assert scales.dtype == np.float32
    got = unpack_rows(packed, scales, bits, 75)
    bound = output_error(weight, unpack_rows(expected_packed, expected_scales, bits, 75), moments)
    assert output_error(weight, got, moments) < bound


def test_moments_are_added_up_over_batches(monkeypatch):
    x = make_inputs(50, 2100, rank=2)
    moments = np.zeros((2100, 2100), np.float32)
    add_moments(moments, x[:20])
    add_moments(moments, x[20:])
    expected = x.astype(np.float64).T @ x
    np.testing.assert_allclose(moments, expected, atol=1e-5 * np.abs(expected).max())
    before = moments.copy()
    x[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        add_moments(moments, x)
    np.testing.assert_array_equal(moments, before)
    with pytest.raises(ValueError, match="moments"):
        add_moments(moments, x[:, :5])


def test_output_error_is_that_of_the_outputs_themselves():
    x, weight = make_inputs(300, 40), make_weight((600, 40))
    got = weight + 0.01 * make_weight((600, 40), seed=5)
    expected = np.linalg.norm(x @ (weight - got).T) / np.linalg.norm(x @ weight.T)
    assert output_error(weight, got, make_moments(x)) == pytest.approx(expected, rel=1e-4)
    assert output_error(weight, weight, make_moments(x)) == 0


def test_the_factor_in_place_is_numpys(monkeypatch):
    monkeypatch.setattr(gptq, "CHOLESKY_BLOCK", 16)
    moments = make_moments(make_inputs(500, 75)).astype(np.float64)
    expected = np.linalg.cholesky(moments)
    gptq._cholesky(moments)
    np.testing.assert_allclose(np.tril(moments), expected, rtol=1e-9, atol=1e-12)


def test_moments_that_float32_cannot_factorize_are_taken_to_float64(monkeypatch):
    x, weight = make_inputs(200, 40), make_weight((3, 40))
    scales = int8.channel_scales(weight)
    expected = quantize_rows(weight, make_moments(x), scales)
    factorize = gptq._cholesky

    def refuse_float32(matrix):
        if matrix.dtype == np.float32:
            raise np.linalg.LinAlgError
        factorize(matrix)

    monkeypatch.setattr(gptq, "_cholesky", refuse_float32)
    np.testing.assert_array_equal(quantize_rows(weight, make_moments(x), scales), expected)


def test_wrong_arguments_are_refused():
    weight, moments = make_weight((3, 16)), make_moments(make_inputs(40, 16))
    scales = int8.channel_scales(weight)
    nan = weight * np.float32(np.nan)
    for refuse, message in (
        (lambda: quantize_rows(nan, moments, scales), "the weights hold NaN"),
        (lambda: quantize_rows(weight, moments * np.float32(np.inf), scales), "moments hold NaN"),
        (lambda: quantize_rows(weight, moments[:5], scales), "needed .16, 16."),
        (lambda: quantize_rows(weight, moments, scales[:2]), "3 positive ones needed"),
        (lambda: quantize_rows(weight, moments, -scales), "3 positive ones needed"),
        (lambda: quantize_rows(weight, moments * 0, scales), "no activations were seen"),
        (lambda: quantize_blocks(weight, moments, 4, 48), "block size 48 is not supported"),
        (lambda: quantize_blocks(weight, moments, 3, 32), "3 bits are not supported"),
        (lambda: quantize_rows(weight, 1 - np.eye(16), scales), "no activations were seen"),
        (
            lambda: quantize_rows(weight, 2 - np.eye(16), scales),
            "not positive definite with damping 0.01: take more",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 70),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 128]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_shape_is_packed(rows, size, bits, block_size, act_order, seed):
    weight = make_weight((rows, size), seed)
    moments = make_moments(make_inputs(2 * size + 5, size, rank=2, seed=seed))
    packed, scales = quantize_blocks(weight, moments, bits, block_size, act_order=act_order)
    expected_packed, expected_scales = pack_rows(weight, bits, block_size)
    assert packed.shape == expected_packed.shape
    assert scales.shape == expected_scales.shape
    assert np.isfinite(unpack_rows(packed, scales, bits, size)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 70), st.booleans(), st.integers(0, 2**32))
def test_the_error_is_within_the_bound_of_its_proof(rows, size, act_order, seed):
    """QuIP, section 3: where nothing is clipped, (step / 2)^2 times the trace of D in LDL^T."""
    weight = make_weight((rows, size), seed)
    moments = make_moments(make_inputs(2 * size + 5, size, rank=2, seed=seed)).astype(np.float64)
    scales = int8.channel_scales(weight) * np.float32(20)
    levels = quantize_rows(weight, moments, scales, act_order=act_order)
    assume(np.abs(levels.astype(int)).max() < 127)
    order = np.argsort(-np.diagonal(moments), kind="stable") if act_order else np.arange(size)
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(size)
    reverse = order[::-1]
    trace = (np.diagonal(np.linalg.cholesky(damped[np.ix_(reverse, reverse)])) ** 2).sum()
    error = (weight - int8.dequantize(levels, scales)).astype(np.float64)
    cost = np.einsum("nj,jk,nk->n", error, damped, error)
    assert (cost <= trace * (scales.astype(np.float64) / 2) ** 2 * 1.001).all()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (8, 64)])
def test_positive_scales_are_above_0_and_still_clearly_beat_nearest(bits, block_size, act_order):
    weight, x = make_weight((48, 300)), make_inputs(1000, 300)
    weight[3, :64] = 0
    moments = make_moments(x)

    def measure(packed, scales):
        return output_error(weight, unpack_rows(packed, scales, bits, 300), moments)

    packed = quantize_blocks(weight, moments, bits, block_size, act_order=act_order, positive=True)
    assert (packed[1] > 0).all()
    assert measure(*packed) < 0.6 * measure(*pack_rows(weight, bits, block_size, positive=True))
    signed = quantize_blocks(weight, moments, bits, block_size, act_order=act_order)
    assert (signed[1] < 0).mean() > 0.3
    assert measure(*packed) < 1.15 * measure(*signed)


@pytest.mark.parametrize("bits", [4, 8])
def test_positive_blocks_are_rounded_with_searched_positive_scales(bits):
    weight, moments = make_weight((9, 64)), make_moments(make_inputs(300, 64))
    scales = quantize_blocks(weight, moments, bits, 16, positive=True)[1]
    expected = pack_searched(weight, bits, 16, np.diagonal(moments), positive=True)[1]
    np.testing.assert_array_equal(scales, expected)


def test_a_block_of_zeros_takes_no_errors_of_others_under_a_positive_scale():
    weight, moments = make_weight((6, 64)), make_moments(make_inputs(300, 64))
    weight[2, 32:] = 0
    weight[4] = 0
    packed, scales = quantize_blocks(weight, moments, 4, 32, positive=True)
    assert scales[2, 1] == scales[4, 0] == scales[4, 1] == 2**-14
    got = unpack_rows(packed, scales, 4, 64)
    assert not got[2, 32:].any()
    assert not got[4].any()
