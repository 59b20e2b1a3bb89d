"""FP8 against ml_dtypes, ONNX Runtime's Q/DQ and the format's definition written out."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding import fp8


def make_rows(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_qdq(x, scales, axis=0):
    """QuantizeLinear, DequantizeLinear as ONNX Runtime computes them."""
    scales = np.asarray(scales, np.float32)
    zero = onnx.helper.make_tensor(
        "zero", onnx.TensorProto.FLOAT8E4M3FN, scales.shape, bytes(scales.size), raw=True
    )
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=axis),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=axis),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.numpy_helper.from_array(scales, "scale"), zero],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def edge_cases():
    """Every value, every middle between two, their neighbours, both signs, and beyond."""
    values = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (values[1:] + values[:-1]) / 2
    around = np.concatenate((values, middles, np.float32([448, 456, 464, 465, 500, 1e30])))
    around = np.concatenate(
        [
            np.nextafter(around, np.float32(-np.inf)),
            around,
            np.nextafter(around, np.float32(np.inf)),
        ]
    )
    return np.concatenate((around, -around, np.float32([np.nan, np.inf, -np.inf]))).astype(
        np.float32
    )


@pytest.mark.parametrize("scale", [1.0, 0.037])
def test_values_are_those_of_onnx_runtime_nan_and_saturation_included(scale):
    x = np.concatenate((edge_cases() * np.float32(scale), make_rows(3000) * 50))
    got = fp8.dequantize(fp8.quantize(x, scale), scale)
    expected = run_qdq(x, scale)
    np.testing.assert_array_equal(
        got.view(np.uint32)[~np.isnan(x)], expected.view(np.uint32)[~np.isnan(x)]
    )
    assert np.isnan(got[np.isnan(x)]).all()
    assert np.isnan(expected[np.isnan(x)]).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_values_are_those_of_onnx_runtime_per_channel(axis):
    weight = make_rows((30, 50)) * np.geomspace(1e-6, 1e6, 50, dtype=np.float32)
    scales = fp8.channel_scales(weight if axis == 0 else weight.T)
    got = fp8.dequantize(fp8.quantize(weight, scales, axis), scales, axis)
    np.testing.assert_array_equal(got, run_qdq(weight, scales, axis))


def test_bits_within_the_range_are_the_cast_of_ml_dtypes():
    x = edge_cases()
    x = x[np.abs(x) <= 448]
    np.testing.assert_array_equal(
        fp8.quantize(x, 1.0).view(np.uint8), x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    )


def test_every_finite_code_comes_back_as_itself():
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    np.testing.assert_array_equal(
        fp8.quantize(fp8.dequantize(codes, 0.5), 0.5).view(np.uint8), codes
    )


def test_codes_are_sign_exponent_and_mantissa_as_published():
    """OCP 8-bit floating point: bias 7, subnormals at 2^-6, 448 = 1.75 * 2^8."""
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        value = mantissa / 8 * 2**-6 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        assert fp8.dequantize(np.array([code], np.uint8), 1.0) == value


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(-30, 30), st.integers(0, 2**32))
def test_relative_error_is_a_sixteenth_at_most_and_the_extreme_is_exact(rows, size, power, seed):
    weight = make_rows((rows, size), seed) * np.float32(10.0**power)
    scales = fp8.channel_scales(weight)
    error = np.abs(fp8.dequantize(fp8.quantize(weight, scales), scales) - weight)
    smallest = scales[:, None] * np.float32(2.0**-10)  # half of a subnormal's step
    assert (error <= np.maximum(np.abs(weight) / 16, smallest) * 1.0001).all()
    extreme = np.abs(weight).argmax(axis=1)[:, None]
    largest = np.take_along_axis(np.abs(weight), extreme, 1)
    assert (np.take_along_axis(error, extreme, 1) <= largest * 1e-6).all()


def test_rows_of_zeros_have_a_usable_scale():
    assert fp8.channel_scales(np.zeros((2, 4), np.float32)).tolist() == [1.0, 1.0]
    assert fp8.tensor_scale(0.0) == 1.0
    assert fp8.tensor_scale(896.0) == 2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    weight = make_rows((3, 8))
    weight[1, 5] = bad
    for refuse in (
        lambda: fp8.channel_scales(weight),
        lambda: fp8.pack_table_rows(weight, "fp8"),
        lambda: fp8.pack_table_rows(weight, "int8"),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            refuse()


@pytest.mark.parametrize(("format", "dtype", "bound"), [("int8", "i1", 0.01), ("fp8", "u1", 0.03)])
def test_a_table_is_packed_row_by_row_and_comes_back(format, dtype, bound):
    rows = make_rows((40, 96)) * np.geomspace(1e-3, 1e3, 40, dtype=np.float32)[:, None]
    codes, scales = fp8.pack_table_rows(rows, format)
    assert codes.dtype == dtype
    assert codes.shape == rows.shape
    assert scales.dtype == np.float32
    again = fp8.unpack_table_rows(codes, scales)
    error = np.linalg.norm(again - rows, axis=1) / np.linalg.norm(rows, axis=1)
    assert error.max() < bound
    part_codes, part_scales = fp8.pack_table_rows(rows[10:20], format)
    np.testing.assert_array_equal(part_codes, codes[10:20])
    np.testing.assert_array_equal(part_scales, scales[10:20])


def test_an_unknown_table_format_is_refused():
    with pytest.raises(ValueError, match="needed int8 or fp8"):
        fp8.pack_table_rows(make_rows((1, 4)), "int4")
