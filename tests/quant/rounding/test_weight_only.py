"""Packed weights against the definition, and against what ONNX Runtime makes of them."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding.weight_only import (
    BLOCK_SIZES,
    num_blocks,
    pack_codes,
    pack_rows,
    unpack_rows,
)

SHAPES = [(1, 16), (5, 64), (3, 100), (7, 33), (2, 1)]


def make_rows(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matmul_nbits(rows, bits, block_size, accuracy_level):
    """The operator's product with the identity: the weights as ONNX Runtime sees them."""
    packed, scales = pack_rows(rows, bits, block_size)
    out, size = rows.shape
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["tokens", size]))
    initializers = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        for name, array in (("packed", packed), ("scales", scales))
    ]
    attributes = {
        "K": size,
        "N": out,
        "bits": bits,
        "block_size": block_size,
        "accuracy_level": accuracy_level,
    }
    node = ir.node("MatMulNBits", [x, *initializers], attributes, domain="com.microsoft")
    y = node.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x],
        [y],
        nodes=[node],
        initializers=initializers,
        opset_imports={"": 23, "com.microsoft": 1},
        name="g",
    )
    model = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(size, dtype=np.float32)})[0].T


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_onnx_runtime_reads_the_weights_we_unpack(bits, shape, block_size):
    """Tolerance 1e-6 relative: one float32 product a weight, float activations."""
    rows = make_rows(shape)
    expected = unpack_rows(*pack_rows(rows, bits, block_size), bits, shape[1])
    got = matmul_nbits(rows, bits, block_size, accuracy_level=0)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_onnx_runtime_with_int8_activations_reads_the_same_weights(bits, block_size):
    """Tolerance 1 %: a one among zeros is exact in int8, its scale is a float32 divided by 127."""
    rows = make_rows((6, 200))
    expected = unpack_rows(*pack_rows(rows, bits, block_size), bits, 200)
    got = matmul_nbits(rows, bits, block_size, accuracy_level=4)
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_is_further_than_its_step_and_the_extreme_is_exact(bits):
    rows = make_rows((50, 256))
    packed, scales = pack_rows(rows, bits, 64)
    error = np.abs(unpack_rows(packed, scales, bits, 256) - rows).reshape(50, 4, 64)
    step = np.abs(scales)[:, :, None]
    # half a step, but a whole one for the extreme of the other sign, which has no level of its own
    assert (error <= step * 1.0001).all()
    assert (error > step * 0.5001).mean() < 0.01
    extreme = np.abs(rows).reshape(50, 4, 64).argmax(axis=2, keepdims=True)
    assert np.take_along_axis(error, extreme, 2).max() <= 1e-6


def test_packing_is_the_definition_written_out():
    rows = np.array([[-8.0, -7.4, 0.0, 0.5, 1.5, 7.0, 7.9, 8.0] + [0.25] * 8], np.float32)
    packed, scales = pack_rows(rows, 4, 16)
    assert scales.tolist() == [[1.0]]
    # ties go to the even level; 8.0 has none and becomes 7
    levels = [0, 1, 8, 8, 10, 15, 15, 15] + [8] * 8
    pairs = [low | high << 4 for low, high in zip(levels[::2], levels[1::2], strict=True)]
    assert packed.tolist() == [[pairs]]


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_zeros_and_of_tiny_values_become_zeros(bits):
    rows = np.zeros((2, 64), np.float32)
    rows[1, 3] = 1e-42
    packed, scales = pack_rows(rows, bits, 32)
    assert not scales.any()
    assert not unpack_rows(packed, scales, bits, 64).any()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    rows = make_rows((3, 64))
    rows[1, 50] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        pack_rows(rows, 4, 32)


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (4, 48), (8, 0)])
def test_what_the_operator_lacks_is_refused(bits, block_size):
    with pytest.raises(ValueError, match="not supported"):
        pack_rows(make_rows((1, 64)), bits, block_size)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_chosen_elsewhere_are_the_weights_of_their_levels(bits, shape):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, shape).astype(np.uint8)
    packed = pack_codes(codes, bits, 32)
    scales = rng.uniform(-1, 1, packed.shape[:2]).astype(np.float32)
    steps = np.repeat(scales, 32, axis=1)[:, : shape[1]]
    expected = (codes.astype(np.float32) - (1 << (bits - 1))) * steps
    np.testing.assert_array_equal(unpack_rows(packed, scales, bits, shape[1]), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_pads_a_row_stands_for_zeros(bits):
    packed = pack_codes(np.zeros((1, 33), np.uint8), bits, 32)
    padded = unpack_rows(packed, np.ones((1, 2), np.float32), bits, 64)
    assert not padded[:, 33:].any()
    assert (padded[:, :33] == -(1 << (bits - 1))).all()


def test_codes_that_do_not_fit_are_refused():
    codes = np.full((2, 32), 16, np.uint8)
    with pytest.raises(ValueError, match="codes reach 16, 4 bits hold 15"):
        pack_codes(codes, 4, 32)
    assert (pack_codes(codes, 8, 32) == 16).all()
    with pytest.raises(ValueError, match="not supported"):
        pack_codes(codes, 4, 24)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 150),
    st.sampled_from([4, 8]),
    st.sampled_from(BLOCK_SIZES),
    st.integers(-30, 30),
    st.integers(0, 2**32),
)
def test_any_shape_and_scale_comes_back_within_a_step(rows, size, bits, block_size, power, seed):
    weights = make_rows((rows, size), seed) * np.float32(10.0**power)
    packed, scales = pack_rows(weights, bits, block_size)
    assert packed.shape == (rows, num_blocks(size, block_size), block_size * bits // 8)
    step = np.repeat(np.abs(scales), block_size, axis=1)[:, :size]
    error = np.abs(unpack_rows(packed, scales, bits, size) - weights)
    assert (error <= step * 1.0001).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_positive_scale_is_the_least_that_clips_neither_side(bits):
    rows = make_rows((20, 192))
    middle = 1 << (bits - 1)
    packed, scales = pack_rows(rows, bits, 64, positive=True)
    for row, row_scales in zip(rows.astype(np.float64), scales.tolist(), strict=True):
        for block, scale in zip(row.reshape(3, 64), row_scales, strict=True):
            assert -middle * (1 + 1e-6) <= block.min() / scale
            assert block.max() / scale <= (middle - 1) * (1 + 1e-6)
            smaller = block / (scale * 0.999)
            assert smaller.min() < -middle or smaller.max() > middle - 1
    step = np.repeat(scales, 64, axis=1)
    error = np.abs(unpack_rows(packed, scales, bits, 192) - rows)
    assert (error <= 0.5001 * step).all()  # also the extreme of the other sign


@pytest.mark.parametrize("bits", [4, 8])
def test_a_positive_scale_of_a_block_of_zeros_stays_positive_in_float16(bits):
    rows = np.zeros((3, 64), np.float32)
    rows[1, 3], rows[1, 40] = 1e-42, -1e-38
    rows[2, 0] = -1  # the other block of its row is zeros
    packed, scales = pack_rows(rows, bits, 32, positive=True)
    assert scales[:2].tolist() == [[2**-14, 2**-14]] * 2
    assert (scales.astype(np.float16) >= np.finfo(np.float16).tiny).all()
    expected = np.where(np.abs(rows) < 1e-30, 0, rows)
    np.testing.assert_array_equal(unpack_rows(packed, scales, bits, 64), expected)


def test_positive_packing_is_the_definition_written_out():
    rows = np.array([[-7.4, -7.5, 0.0, 0.5, 1.5, 6.4, 6.5, 7.0] + [-0.25] * 8], np.float32)
    for sign, levels in ((1, [1, 0, 8, 8, 10, 14, 14, 15]), (-1, [15, 15, 8, 8, 7, 2, 2, 1])):
        packed, scales = pack_rows(rows * np.float32(sign), 4, 16, positive=True)
        step = 1.0 if sign == 1 else 7.5 / 7
        assert scales[0, 0] == pytest.approx(step, rel=1e-6)
        pairs = [low | high << 4 for low, high in zip(levels[::2], levels[1::2], strict=True)]
        assert packed[0, 0].tolist() == [*pairs, *[8 | 8 << 4] * 4]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_positive_scales_too(bad):
    rows = make_rows((3, 64))
    rows[1, 50] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        pack_rows(rows, 4, 32, positive=True)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 150),
    st.sampled_from([4, 8]),
    st.sampled_from(BLOCK_SIZES),
    st.integers(-45, 30),
    st.integers(0, 2**32),
)
def test_any_weight_is_within_half_a_positive_step(rows, size, bits, block_size, power, seed):
    weights = (make_rows((rows, size), seed).astype(np.float64) * 10.0**power).astype(np.float32)
    packed, scales = pack_rows(weights, bits, block_size, positive=True)
    assert (scales > 0).all()
    assert np.isfinite(scales).all()
    step = np.repeat(scales, block_size, axis=1)[:, :size]
    error = np.abs(unpack_rows(packed, scales, bits, size) - weights)
    assert (error <= 0.5001 * step).all()
    largest_step = np.abs(weights).max() / ((1 << (bits - 1)) - 1)
    counts_as_zero = 128 * np.finfo(np.float32).tiny
    assert error.max() <= 0.5001 * largest_step + counts_as_zero
