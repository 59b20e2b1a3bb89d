"""A layer's own error, computed a second time with numpy and ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from vlmedge.quant.quantize.calibration import LayerCalibration
from vlmedge.quant.quantize.input_range import InputRange, ask
from vlmedge.quant.quantize.layer_error import ERROR_ROWS, dequantize, measure_error
from vlmedge.quant.quantize.linear_nodes import QuantizedLinear
from vlmedge.quant.recipe.recipe import LinearRecipe
from vlmedge.quant.rounding import fp8, int8
from vlmedge.quant.rounding.activations import LayerInput
from vlmedge.quant.rounding.weight_only import pack_rows

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((60, 32), np.float32)
W = GENERATOR.standard_normal((20, 32), np.float32)
FP8 = ml_dtypes.float8_e4m3fn
AMAX = 2.5  # some of X is beyond it


def round_levels(x, scale, lowest=-127):
    return np.clip(np.rint(x / scale), lowest, 127) * scale


def round_fp8(x, scale):
    return np.clip(x / scale, -448, 448).astype(FP8).astype(np.float32) * scale


def row_scales(x, top):
    return (np.abs(x).max(axis=1, keepdims=True) / np.float32(top)).astype(np.float32)


def relative(got, needed):
    return np.linalg.norm(got - needed) / np.linalg.norm(needed)


def calibrate(recipe, **changes):
    seen = LayerInput(X.shape[1], 1, with_moments=False)
    seen.update(X)
    return LayerCalibration(seen.stats, InputRange(*ask(recipe), amax=AMAX, **changes))


def measure(recipe, quantized, *, rows=X, matrix=W, scales=None, calibration=None):
    migrated = matrix if scales is None else matrix * scales
    return measure_error(recipe, rows, matrix, migrated, quantized, scales, calibration)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_static_formats_round_both_factors(format):
    recipe = LinearRecipe(format, ranges="minmax")
    if format == "int8":
        scales = int8.channel_scales(W)
        codes, input_scale = int8.quantize(W, scales), AMAX / 127
        got = round_levels(X, np.float32(input_scale), -128)
        weights = round_levels(W, row_scales(W, 127))
        plain = round_levels(X, np.abs(X).max() / np.float32(127))
    else:
        scales = fp8.channel_scales(W)
        codes, input_scale = fp8.quantize(W, scales).view(np.uint8), AMAX / 448
        got = round_fp8(X, np.float32(input_scale))
        weights = round_fp8(W, row_scales(W, 448))
        plain = round_fp8(X, np.abs(X).max() / np.float32(448))
    error = measure(
        recipe, QuantizedLinear(recipe, codes, scales, input_scale), calibration=calibrate(recipe)
    )
    np.testing.assert_allclose(error.chosen, relative(got @ weights.T, X @ W.T), rtol=1e-4)
    # To nearest the range is the recipe's own without migration: here the largest magnitude.
    np.testing.assert_allclose(error.nearest, relative(plain @ weights.T, X @ W.T), rtol=1e-4)
    assert error.strength is None


def test_dynamic_inputs_are_rounded_row_by_row():
    recipe = LinearRecipe("int8-dynamic")
    scales = int8.channel_scales(W)
    error = measure(recipe, QuantizedLinear(recipe, int8.quantize(W, scales), scales))
    got = round_levels(X, row_scales(X, 127)) @ round_levels(W, row_scales(W, 127)).T
    np.testing.assert_allclose(error.chosen, relative(got, X @ W.T), rtol=1e-4)
    assert error.chosen == error.nearest


@pytest.mark.parametrize(("format", "bits"), [("int8-weight", 8), ("int4-weight", 4)])
def test_weight_only_layers_leave_their_input_alone(format, bits):
    recipe = LinearRecipe(format, block_size=16)
    error = measure(recipe, QuantizedLinear(recipe, *pack_rows(W, bits, 16)))
    blocks = W.reshape(20, 2, 16)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[:, :, None], axis=2)
    steps = extreme / -(2 ** (bits - 1))
    levels = np.clip(np.rint(blocks / steps), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    got = X @ (levels * steps).reshape(20, 32).T
    np.testing.assert_allclose(error.chosen, relative(got, X @ W.T), rtol=1e-4)
    assert error.chosen == error.nearest


def test_migration_and_shift_are_part_of_the_layer():
    scales = 2.0 ** GENERATOR.integers(-2, 3, 32).astype(np.float32)
    shift = GENERATOR.standard_normal(32, np.float32)
    recipe = LinearRecipe("int8")
    migrated = W * scales
    rows = int8.channel_scales(migrated)
    quantized = QuantizedLinear(
        recipe, int8.quantize(migrated, rows), rows, AMAX / 127, shift=shift
    )
    found = calibrate(recipe, strength=0.5, scales=scales, shift=shift)
    error = measure(recipe, quantized, scales=scales, calibration=found)
    changed = X / scales - shift
    got = round_levels(changed, np.float32(AMAX / 127), -128) @ dequantize(quantized, 32).T
    needed = X @ W.T
    # what is subtracted comes back with the float matrix, in the bias
    np.testing.assert_allclose(error.chosen, relative(got + shift @ migrated.T, needed), rtol=2e-3)
    assert error.strength == 0.5


def test_an_error_is_of_evenly_spaced_rows_and_outputs():
    many = GENERATOR.standard_normal((4 * ERROR_ROWS, 32), np.float32)
    recipe = LinearRecipe("int8-weight", block_size=16)
    quantized = QuantizedLinear(recipe, *pack_rows(W, 8, 16))
    error = measure(recipe, quantized, rows=many)
    needed = measure(recipe, quantized, rows=many[::4])
    assert error == needed


@pytest.mark.parametrize("format", ["int8", "fp8", "int8-weight", "int4-weight"])
def test_codes_stand_for_the_matrix(format):
    recipe = LinearRecipe(format, block_size=16)
    matrix = W[:, :24]  # ends within a block
    if format in ("int8", "fp8"):
        module = {"int8": int8, "fp8": fp8}[format]
        scales = module.channel_scales(matrix)
        codes = module.quantize(matrix, scales)
        quantized = QuantizedLinear(
            recipe, codes.view(np.uint8 if format == "fp8" else np.int8), scales
        )
    else:
        bits = 4 if format == "int4-weight" else 8
        quantized = QuantizedLinear(recipe, *pack_rows(matrix, bits, 16))
    found = dequantize(quantized, 24)
    assert found.shape == matrix.shape
    limit = {"int8": 0.01, "fp8": 0.04, "int8-weight": 0.01, "int4-weight": 0.12}[format]
    assert relative(found, matrix) < limit
