"""Symmetric int8 against ONNX Runtime's Q/DQ, and clipped ranges against brute force."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding import int8


def make_rows(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_qdq(x, scales, axis=None):
    """QuantizeLinear, DequantizeLinear as ONNX Runtime computes them."""
    scales = np.asarray(scales, np.float32)
    zero = np.zeros(scales.shape, np.int8)
    constants = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        for name, array in (("scale", scales), ("zero", zero))
    ]
    source = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(x.shape))
    attributes = {} if axis is None else {"axis": axis}
    down = ir.node("QuantizeLinear", [source, *constants], attributes)
    up = ir.node("DequantizeLinear", [down.outputs[0], *constants], attributes)
    down.outputs[0].name, down.outputs[0].type = "q", ir.TensorType(ir.DataType.INT8)
    up.outputs[0].name, up.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [source],
        [down.outputs[0], up.outputs[0]],
        nodes=[down, up],
        initializers=constants,
        opset_imports={"": 21},
        name="g",
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def test_levels_and_values_are_those_of_onnx_runtime_per_tensor():
    """Ties of both kinds, both saturations, and numbers whose quotient a reciprocal gets wrong."""
    ties = np.arange(-140, 140, dtype=np.float32) / 2 * np.float32(0.3)
    x = np.concatenate((ties, make_rows(5000) * 20, np.float32([1e30, -1e30, 0.0, -0.0])))
    levels, values = run_qdq(x, 0.3)
    np.testing.assert_array_equal(int8.quantize(x, 0.3, lowest=-128), levels)
    np.testing.assert_array_equal(int8.dequantize(levels, 0.3), values)
    assert (levels == -128).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_levels_and_values_are_those_of_onnx_runtime_per_channel(axis):
    weight = make_rows((30, 50)) * np.geomspace(1e-6, 1e6, 50, dtype=np.float32)
    scales = int8.channel_scales(weight if axis == 0 else weight.T)
    levels, values = run_qdq(weight, scales, axis)
    np.testing.assert_array_equal(int8.quantize(weight, scales, axis), levels)
    np.testing.assert_array_equal(int8.dequantize(levels, scales, axis), values)


def test_ties_go_to_the_even_level():
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert int8.quantize(x, 1.0).tolist() == [0, 2, 2, 0, -2, -2]


def test_the_extreme_of_either_sign_has_a_level_and_minus_128_is_none():
    weight = np.float32([[1.0, -0.2], [0.2, -1.0], [-3.0, 3.0]])
    scales = int8.channel_scales(weight)
    levels = int8.quantize(weight, scales)
    assert levels.tolist() == [[127, -25], [25, -127], [-127, 127]]
    assert int8.quantize(np.float32([-2.0]), 0.01).tolist() == [-127]


def test_rows_of_zeros_and_of_next_to_nothing_have_a_usable_scale():
    weight = np.zeros((2, 4), np.float32)
    weight[1, 2] = 1e-40
    scales = int8.channel_scales(weight)
    assert scales.tolist() == [1.0, 1.0]
    assert not int8.quantize(weight, scales).any()
    assert int8.tensor_scale(0.0) == 1.0
    assert int8.tensor_scale(127.0) == 1.0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(-30, 30), st.integers(0, 2**32))
def test_no_weight_is_further_than_half_a_step_from_its_level(rows, size, power, seed):
    weight = make_rows((rows, size), seed) * np.float32(10.0**power)
    scales = int8.channel_scales(weight)
    error = np.abs(int8.dequantize(int8.quantize(weight, scales), scales) - weight)
    assert (error <= scales[:, None] * 0.50001).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-300, 300, width=32), min_size=2, max_size=30), st.floats(0.01, 10))
def test_a_larger_value_never_has_a_lower_level(values, scale):
    levels = int8.quantize(np.sort(np.float32(values)), scale)
    assert (np.diff(levels.astype(int)) >= 0).all()


@pytest.mark.parametrize("column_weights", [None, "uneven"])
def test_clipped_ranges_are_those_of_brute_force(column_weights):
    rng = np.random.default_rng(1)
    weight = rng.standard_t(3, (20, 200)).astype(np.float32)
    if column_weights:
        column_weights = rng.uniform(0, 5, 200).astype(np.float32) ** 2
    clip = int8.search_clip(weight, column_weights)
    importance = np.ones(200) if column_weights is None else column_weights.astype(np.float64)
    for row, got in zip(weight.astype(np.float64), clip, strict=True):
        errors = {}
        for share in int8.CLIP_GRID:
            scale = np.abs(row).max() * share / 127
            levels = np.clip(np.round(row / scale), -127, 127)
            errors[share] = (importance * (levels * scale - row) ** 2).sum()
        got_share = min(int8.CLIP_GRID, key=lambda share: abs(share - got / np.abs(row).max()))
        assert errors[got_share] <= min(errors.values()) * (1 + 1e-4)


def test_an_outlier_in_a_column_that_hardly_counts_is_clipped():
    weight = make_rows((4, 300))
    weight[:, 7] = 9.0
    matters, hardly = np.ones(300, np.float32), np.ones(300, np.float32)
    matters[7], hardly[7] = 100.0, 1e-4
    assert (int8.search_clip(weight, matters) == 9.0).all()
    clip = int8.search_clip(weight, hardly)
    assert (clip < 5).all()
    assert (int8.channel_scales(weight, clip) == clip / np.float32(127)).all()


def test_blocks_of_rows_and_sizes_of_numbers_change_no_range(monkeypatch):
    weight = make_rows((37, 64))
    whole = int8.search_clip(weight)
    monkeypatch.setattr(int8, "BLOCK_ELEMENTS", 5 * 64)
    np.testing.assert_array_equal(int8.search_clip(weight), whole)
    tiny = int8.search_clip(weight * np.float32(2.0**-90))
    np.testing.assert_array_equal(tiny, whole * np.float32(2.0**-90))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    weight = make_rows((3, 8))
    weight[1, 5] = bad
    for refuse in (
        lambda: int8.channel_scales(weight),
        lambda: int8.quantize(weight, 1.0),
        lambda: int8.search_clip(weight),
        lambda: int8.search_clip(make_rows((3, 8)), weight[1]),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            refuse()


def test_ranges_and_column_weights_of_another_size_are_refused():
    weight = make_rows((3, 8))
    with pytest.raises(ValueError, match="3 rows need one each"):
        int8.channel_scales(weight, np.ones(4, np.float32))
    with pytest.raises(ValueError, match="8 needed"):
        int8.search_clip(weight, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="negative"):
        int8.search_clip(weight, np.full(8, -1, np.float32))
