"""Linear layers in every form: MatMulNBits with its offset, blocks, rows, casts of weights."""

import ml_dtypes
import numpy as np
import onnx
import pytest

ROWS, COLUMNS = 6, 128


def draw(seed, *shape, size=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def make_nbits(bits, block_size, *, has_bias):
    """(node, constants, dense matrix): codes drawn, packed by hand, dequantized by hand."""
    rng = np.random.default_rng(bits)
    blocks = -(-COLUMNS // block_size)
    codes = rng.integers(0, 1 << bits, (ROWS, blocks, block_size)).astype(np.uint8)
    scales = rng.uniform(0.001, 0.01, (ROWS, blocks)).astype(np.float32)
    packed = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
    dense = (codes.astype(np.float64) - (1 << (bits - 1))) * scales[..., None]
    constants = {"m.weight.packed": packed.astype(np.uint8), "m.weight.scales": scales}
    inputs = ["x", *constants]
    if has_bias:
        constants["m.bias"] = draw(5, ROWS)
        inputs += ["", "", "m.bias"]
    node = onnx.helper.make_node(
        "MatMulNBits",
        inputs,
        ["y"],
        "/model/m/MatMulNBits",
        domain="com.microsoft",
        K=COLUMNS,
        N=ROWS,
        bits=bits,
        block_size=block_size,
    )
    return node, constants, dense.reshape(ROWS, -1)[:, :COLUMNS]


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("block_size", [16, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("target", ["jetpack-6.2", "tensorrt-rtx"])
def test_matmulnbits_becomes_the_product_with_its_matrix(
    run_lowered, target, bits, block_size, has_bias
):
    node, constants, dense = make_nbits(bits, block_size, has_bias=has_bias)
    x = draw(0, 3, COLUMNS)
    got = run_lowered([node], {"x": x}, constants, target=target)["y"]
    needed = x @ dense.T + constants.get("m.bias", 0)
    takes = (16, 32, 64, 128) if target == "tensorrt-rtx" else (64, 128) if bits == 4 else ()
    is_exact = any(block_size % size == 0 for size in takes)
    # Else 8 bits and one scale a row: half a step of each weight, of independent errors.
    step = 0 if is_exact else np.abs(dense).max() / 127
    tolerance = 1e-4 + 4 * step / 12**0.5 * np.sqrt((x**2).sum(axis=1)).max()
    np.testing.assert_allclose(got, needed, rtol=0, atol=tolerance)


def test_a_matrix_of_float16_needs_no_cast(run_lowered):
    weight = draw(1, ROWS, COLUMNS)
    nodes = [
        onnx.helper.make_node("Cast", ["m.weight"], ["wide"], "/model/m/Cast", to=1),
        onnx.helper.make_node("Gemm", ["x", "wide"], ["y"], "/model/m/MatMul", transB=1),
    ]
    x = draw(0, 3, COLUMNS)
    half = weight.astype(np.float16)
    got = run_lowered(nodes, {"x": x}, {"m.weight": half})["y"]
    np.testing.assert_allclose(got, x @ half.astype(np.float64).T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("compute", ["float32", "float16"])
@pytest.mark.parametrize("kind", [np.int8, "float8_e4m3fn"])
def test_static_pairs_compute_with_codes_of_both_sides(run_lowered, kind, compute):
    dtype = np.dtype(getattr(ml_dtypes, kind) if isinstance(kind, str) else kind)
    levels = 127 if dtype == np.int8 else 448
    weight, x = draw(1, ROWS, COLUMNS), draw(0, 3, COLUMNS)
    # Powers of two: the same in float16, so the codes are the same
    scales, input_scale = np.full(ROWS, 2.0**-5, np.float32), np.float32(2.0**-5)

    def round_trip(values, scale):
        codes = np.clip(values.astype(np.float64) / scale, -levels, levels)
        codes = np.rint(codes) if dtype == np.int8 else codes
        return codes.astype(np.float32).astype(dtype)

    constants = {
        "m.input_scale": np.array(input_scale),
        "m.input_zero_point": np.zeros((), dtype),
        "m.weight.codes": round_trip(weight, 2.0**-5),
        "m.weight.scales": scales,
        "m.weight.zero_points": np.zeros(ROWS, dtype),
    }
    pair = ["m.input_scale", "m.input_zero_point"]
    matrix = ["m.weight.codes", "m.weight.scales", "m.weight.zero_points"]
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", *pair], ["q"], "/model/m/input/QuantizeLinear"),
        make("DequantizeLinear", ["q", *pair], ["d"], "/model/m/input/DequantizeLinear"),
        make("DequantizeLinear", matrix, ["w"], "/model/m/weight/DequantizeLinear", axis=0),
        make("Gemm", ["d", "w"], ["y"], "/model/m/MatMul", transB=1),
    ]
    got = run_lowered(nodes, {"x": x}, constants, target="jetpack-7.2", compute=compute)["y"]
    rounded = round_trip(x.astype(compute), input_scale).astype(np.float64) * 2.0**-5
    dense = constants["m.weight.codes"].astype(np.float64) * 2.0**-5
    tolerance = 1e-4 if compute == "float32" else 0.05  # sums of up to 40 in float16
    np.testing.assert_allclose(got, rounded @ dense.T, rtol=0, atol=tolerance)
