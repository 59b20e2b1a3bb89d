"""Measure how far one quantized layer's output is from the float one's, by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..recipe.recipe import WEIGHT_ONLY, LinearRecipe
from ..rounding import fp8, int8
from ..rounding.smooth import relative_error, spread
from ..rounding.weight_only import pack_rows, unpack_rows
from .calibration import LayerCalibration
from .input_range import make_scale, plain_range
from .linear_nodes import QuantizedLinear

ERROR_ROWS = 256  # of input and of output that an error is measured on


@dataclass(frozen=True, slots=True)
class LayerError:
    """Relative L2 error of one layer's output on calibration rows, by itself.

    Attributes:
        chosen: as it was quantized.
        nearest: with weights rounded to nearest and nothing migrated, for comparison.
        strength: of the migration; None: none.
    """

    chosen: float
    nearest: float
    strength: float | None


def dequantize(quantized: QuantizedLinear, in_features: int) -> NDArray[np.float32]:
    """The matrix float32[N, K] that a quantized layer stands for."""
    recipe = quantized.recipe
    if bits := WEIGHT_ONLY.get(recipe.format):
        return unpack_rows(quantized.codes, quantized.scales, bits, in_features)
    if recipe.format == "fp8":
        return fp8.dequantize(quantized.codes, quantized.scales)
    return int8.dequantize(quantized.codes, quantized.scales)


def measure_error(
    recipe: LinearRecipe,
    rows: NDArray[np.float32],
    original: NDArray[np.float32],
    migrated: NDArray[np.float32],
    quantized: QuantizedLinear,
    scales: NDArray[np.float32] | None,
    calibration: LayerCalibration | None,
) -> LayerError:
    """Error of some outputs for some inputs, beside that of rounding to nearest.

    Args:
        recipe: of the layer.
        rows: float32[R, K], sampled inputs.
        original: float32[O, K], some rows of the float bundle's matrix.
        migrated: float32[O, K], the same rows after all migrations, those into its outputs too.
        quantized: the layer.
        scales: float32[K], what its input is divided by; None: nothing.
        calibration: of static formats.
    """
    x = spread(rows, ERROR_ROWS)
    divided = x if scales is None else x / scales
    matrix = spread(dequantize(quantized, x.shape[1]), ERROR_ROWS)
    shift = np.zeros(x.shape[1], np.float32) if quantized.shift is None else quantized.shift
    got = _round_input(recipe, divided - shift, quantized.input_scale) @ matrix.T
    chosen = relative_error(divided @ migrated.T, got + shift @ migrated.T)
    plain_scale, strength = None, None
    if calibration is not None and calibration.range is not None:
        plain_scale = make_scale(recipe, plain_range(recipe, calibration.stats))
        strength = calibration.range.strength
    plain = _round_input(recipe, x, plain_scale) @ _round_to_nearest(recipe, original).T
    nearest = relative_error(x @ original.T, plain)
    return LayerError(chosen, nearest, strength)


def _round_input(
    recipe: LinearRecipe, x: NDArray[np.float32], scale: float | None
) -> NDArray[np.float32]:
    if recipe.format == "int8-dynamic":
        rows = int8.channel_scales(x)
        return int8.dequantize(int8.quantize(x, rows), rows)
    if scale is None:
        return x
    if recipe.format == "fp8":
        return fp8.dequantize(fp8.quantize(x, scale), scale)
    return int8.dequantize(int8.quantize(x, scale, lowest=-128), scale)


def _round_to_nearest(recipe: LinearRecipe, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    if bits := WEIGHT_ONLY.get(recipe.format):
        positive = recipe.has_positive_scales
        packed = pack_rows(matrix, bits, recipe.block_size, positive=positive)
        return unpack_rows(*packed, bits, matrix.shape[1])
    if recipe.format == "fp8":
        scales = fp8.channel_scales(matrix)
        return fp8.dequantize(fp8.quantize(matrix, scales), scales)
    scales = int8.channel_scales(matrix)
    return int8.dequantize(int8.quantize(matrix, scales), scales)
