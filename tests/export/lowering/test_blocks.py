"""Blocks of weights for TensorRT, against products of codes and scales written out one by one."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vlmedge.export.lowering.blocks import (
    SMALLEST_SCALE,
    BlockPlan,
    convert,
    plan_blocks,
    read_levels,
    write_levels,
)

QUICK = settings(deadline=None, max_examples=60)
# A ratio of float32s is rounded: what is half a step may be a little more.
HALF = 0.50001
SCALES = st.floats(2.0**-13, 8, width=32)


def dequantize(levels, scales, block_size):
    """By definition, in float64: level k of a row times the scale of block k // block_size."""
    return np.array(
        [
            [float(level) * float(row_scales[k // block_size]) for k, level in enumerate(row)]
            for row, row_scales in zip(levels, scales, strict=True)
        ]
    )


@st.composite
def draw_matrices(draw, *, signed, bits=None):
    """(bits, block size, levels int8[rows, K], scales float32[rows, blocks]); K of any length."""
    bits = draw(st.sampled_from((4, 8))) if bits is None else bits
    block_size = draw(st.sampled_from((4, 8, 16)))
    row_size = draw(st.integers(1, 33))
    rows, middle = draw(st.integers(1, 3)), 1 << (bits - 1)
    levels = draw(hnp.arrays(np.int8, (rows, row_size), elements=st.integers(-middle, middle - 1)))
    blocks = -(-row_size // block_size)
    sign = st.sampled_from((-1.0, 0.0, 1.0) if signed else (1.0,))
    scale = st.builds(lambda size, side: size * side, SCALES, sign)
    scales = draw(hnp.arrays(np.float32, (rows, blocks), elements=scale))
    return bits, block_size, levels, scales


def blocks_that_fit(block_size, row_size):
    return [b for b in (2, 4, 8, 16) if row_size % b == 0 and block_size % b == 0]


# --- which blocks


@QUICK
@given(
    bits=st.sampled_from((4, 8)),
    block_size=st.sampled_from((16, 32, 64, 128, 256)),
    row_size=st.integers(1, 400),
    turns=st.booleans(),
    allowed=st.sampled_from(((), (64, 128), (16, 32, 64, 128))),
)
def test_a_plan_is_the_largest_block_that_fits_or_rows(bits, block_size, row_size, turns, allowed):
    plan = plan_blocks(bits, block_size, row_size, turns, allowed)
    for size in sorted(allowed, reverse=True):
        if row_size % size == 0 and block_size % size == 0:
            assert (plan.bits, plan.block_size, plan.turns) == (bits, size, turns)
            assert plan.repeat * size == block_size
            assert plan.precision == f"int{bits} block {size}"
            return
    assert (plan.bits, plan.block_size) == (8, None)
    assert plan.precision == "int8 per row"


def test_plans_of_the_2b_are_the_blocks_of_its_recipes():
    for row_size in (1280, 1536, 5120, 8960):
        for block_size in (64, 128):
            plan = plan_blocks(4, block_size, row_size, False, (64, 128))
            assert (plan.block_size, plan.repeat) == (block_size, 1)
        assert plan_blocks(4, 32, row_size, False, (64, 128)).block_size is None
        assert plan_blocks(8, 128, row_size, False, ()).block_size is None
        assert plan_blocks(4, 256, row_size, False, (64, 128)).repeat == 2


# --- levels in and out


@QUICK
@given(data=st.data(), bits=st.sampled_from((4, 8)), packing=st.sampled_from(("nbits", "levels")))
def test_levels_are_read_as_they_are_stored(data, bits, packing):
    middle, padded = 1 << (bits - 1), data.draw(st.sampled_from((2, 8, 12)))
    row_size = data.draw(st.integers(1, padded))
    shape = (data.draw(st.integers(1, 3)), padded)
    levels = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-middle, middle - 1)))
    codes = levels.astype(int) + middle if packing == "nbits" else levels.astype(int) % (2 * middle)
    stored = [
        [row[k] + 16 * row[k + 1] for k in range(0, padded, 2)] if bits == 4 else list(row)
        for row in codes.tolist()
    ]
    rows = np.array(stored, np.uint8)
    got = read_levels(rows, bits, packing, row_size)
    assert got.dtype == np.int8
    assert got.tolist() == levels[:, :row_size].tolist()
    # MatMulNBits has a dimension more
    shaped = rows.reshape(len(rows), 1, -1)
    assert read_levels(shaped, bits, packing, row_size).tolist() == got.tolist()


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.int4])
def test_levels_that_are_integers_already_are_taken_as_they_are(dtype):
    levels = np.array([[-8, 7, 0, 3]], np.int8).astype(dtype)
    got = read_levels(levels, 8 if dtype is np.int8 else 4, "levels", 3)
    assert (got.dtype, got.tolist()) == (np.int8, [[-8, 7, 0]])


@QUICK
@given(levels=hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.sampled_from((2, 4, 10)))))
def test_levels_are_written_as_onnx_stores_them(levels):
    assert write_levels(levels, 8).tobytes() == levels.tobytes()
    nibbles = (levels.astype(int) % 16 - 8).astype(np.int8)
    tensor = onnx.helper.make_tensor("x", onnx.TensorProto.INT4, levels.shape, nibbles.flatten())
    assert write_levels(nibbles, 4).reshape(-1).tolist() == list(tensor.int32_data)
    tensor.ClearField("int32_data")
    tensor.raw_data = write_levels(nibbles, 4).tobytes()
    assert onnx.numpy_helper.to_array(tensor).astype(np.int8).tolist() == nibbles.tolist()


# --- conversion


@QUICK
@given(matrix=draw_matrices(signed=False), data=st.data())
def test_shorter_blocks_hold_the_very_same_weights(matrix, data):
    bits, block_size, levels, scales = matrix
    fitting = blocks_that_fit(block_size, levels.shape[1])
    if not fitting:
        return
    size = data.draw(st.sampled_from(fitting))
    plan = BlockPlan(bits, size, block_size // size)
    new_levels, new_scales = convert(levels, scales, block_size, plan)
    assert new_levels.tolist() == levels.tolist()
    assert new_scales.shape == (len(levels), levels.shape[1] // size)
    needed = dequantize(levels, scales, block_size)
    assert dequantize(new_levels, new_scales, size).tolist() == needed.tolist()


@QUICK
@given(matrix=draw_matrices(signed=True), data=st.data())
def test_a_turned_block_is_exact_but_for_the_level_without_an_opposite(matrix, data):
    bits, block_size, levels, scales = matrix
    fitting = blocks_that_fit(block_size, levels.shape[1])
    if not fitting:
        return
    size = data.draw(st.sampled_from(fitting))
    plan = BlockPlan(bits, size, block_size // size, turns=True)
    new_levels, new_scales = convert(levels, scales, block_size, plan)
    assert (new_levels.dtype, new_scales.dtype) == (np.int8, np.float32)
    assert (new_scales > 0).all()
    middle = 1 << (bits - 1)
    assert new_levels.min() >= -middle
    assert new_levels.max() <= middle - 1
    needed = dequantize(levels, scales, block_size)
    got = dequantize(new_levels, new_scales, size)
    for row in range(len(levels)):
        for first in range(0, levels.shape[1], size):
            part = slice(first, first + size)
            old_scale = scales[row, first // block_size]
            new_scale = new_scales[row, first // size]
            if old_scale < 0 and -middle in levels[row, part]:
                assert new_scale == pytest.approx(-old_scale * middle / (middle - 1), rel=1e-6)
                assert np.abs(got - needed)[row, part].max() <= HALF * new_scale
            else:
                assert got[row, part].tolist() == needed[row, part].tolist()


@QUICK
@given(matrix=draw_matrices(signed=True))
def test_rows_are_within_half_a_step_and_reach_the_largest_level(matrix):
    _, block_size, levels, scales = matrix
    new_levels, new_scales = convert(levels, scales, block_size, BlockPlan(8, None))
    assert (new_levels.dtype, new_scales.dtype) == (np.int8, np.float32)
    assert new_scales.shape == (len(levels),)
    assert (new_scales > 0).all()
    assert new_levels.min() >= -127
    needed = dequantize(levels, scales, block_size)
    got = dequantize(new_levels, new_scales[:, None], levels.shape[1])
    assert (np.abs(got - needed) <= HALF * new_scales[:, None]).all()
    for row in range(len(levels)):
        if np.abs(needed[row]).max() > 0:
            assert np.abs(new_levels[row]).max() == 127


@pytest.mark.parametrize("plan", [BlockPlan(4, 4), BlockPlan(4, 2, 2, True), BlockPlan(8, None)])
def test_a_block_of_zeros_stays_one_with_a_scale_that_float16_has(plan):
    levels, scales = np.zeros((2, 8), np.int8), np.zeros((2, 2), np.float32)
    new_levels, new_scales = convert(levels, scales, 4, plan)
    assert not new_levels.any()
    assert (new_scales == SMALLEST_SCALE).all()
    assert new_scales.astype(np.float16).min() >= np.finfo(np.float16).smallest_normal


def test_a_scale_of_zero_hides_what_its_levels_say():
    levels, scales = np.full((1, 8), 5, np.int8), np.array([[0, 1]], np.float32)
    for plan in (BlockPlan(4, 4), BlockPlan(4, 4, turns=True)):
        new_levels, new_scales = convert(levels, scales, 4, plan)
        assert new_levels.tolist() == [[0] * 4 + [5] * 4]
        assert new_scales.tolist() == [[float(SMALLEST_SCALE), 1.0]]


def test_a_row_of_tiny_weights_does_not_get_a_scale_that_float16_loses():
    levels = np.array([[127, -3, 0, 50]], np.int8)
    for size in (1e-8, 1e-12, 1e-30):
        _, scales = convert(levels, np.full((1, 1), size, np.float32), 4, BlockPlan(8, None))
        assert scales.astype(np.float16).min() > 0


def test_the_source_is_left_alone():
    levels, scales = np.array([[-8, 3, 1, 0]], np.int8), np.array([[-0.5]], np.float32)
    before = levels.copy(), scales.copy()
    for plan in (BlockPlan(4, 2, 2, True), BlockPlan(8, None), BlockPlan(4, 4)):
        convert(levels, scales, 4, plan)
        assert (levels == before[0]).all()
        assert (scales == before[1]).all()
