"""Convert float32 to FP8 E4M3FN and back: 1 sign, 4 exponent, 3 mantissa bits, at most 448.

Values are divided by the scale and cast by ml_dtypes, nearest, ties to even; what is beyond
+-448 saturates, as QuantizeLinear with saturate=1 has it, and NaN stays NaN: bit for bit what
ONNX Runtime computes. The relative error is 1/16 at most wherever the value is above 2^-6 scales,
so that an outlier costs the others nothing until they are 29,000 times smaller; hence a plain
largest magnitude is nearly always the best range.
"""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import int8
from .int8 import along, require_finite, row_amax, usable_scales

DTYPE = ml_dtypes.float8_e4m3fn
MAX = 448.0

TableFormat = Literal["int8", "fp8"]


def tensor_scale(amax: float) -> float:
    """The scale of a whole tensor with range [-amax, amax]; 1.0 for one of zeros."""
    return float(usable_scales(np.array(amax, np.float32) / np.float32(MAX)))


def channel_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales per output channel, the largest magnitude on 448.

    Args:
        weight: float32[N, K], finite.

    Returns:
        float32[N], positive; 1.0 for a row of zeros.

    Raises:
        ValueError: a value that is not finite.
    """
    require_finite("the weights", weight)
    return usable_scales(row_amax(weight) / np.float32(MAX))


def quantize(x: NDArray[np.float32], scales: ArrayLike, axis: int = 0) -> NDArray[Any]:
    """Round to FP8; NaN stays, so that a layer which makes one can be found.

    Args:
        x: float32[...], any shape.
        scales: one number, or float32[C] along `axis`; positive.
        axis: of the channels.

    Returns:
        float8_e4m3fn[...], the shape of x; `.view(np.uint8)` are its bits.
    """
    scaled = x / along(scales, x.ndim, axis)
    np.clip(scaled, -MAX, MAX, out=scaled)
    return scaled.astype(DTYPE)


def dequantize(codes: NDArray[Any], scales: ArrayLike, axis: int = 0) -> NDArray[np.float32]:
    """The values that codes stand for.

    Args:
        codes: float8_e4m3fn[...], or their bits as uint8[...].
        scales: as in `quantize`.
        axis: of the channels.

    Returns:
        float32[...] in the shape of the codes.
    """
    values = codes.view(DTYPE).astype(np.float32)
    values *= along(scales, codes.ndim, axis)
    return values


def pack_table_rows(
    rows: NDArray[np.float32], format: TableFormat
) -> tuple[NDArray[np.int8] | NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize an embedding table, a scale per row: a token's row is read and scaled by itself.

    Args:
        rows: float32[N, K], finite; a slice of the table gives the same as the whole.
        format: "int8" or "fp8".

    Returns:
        codes: int8[N, K], or uint8[N, K], the bits of E4M3FN.
        scales: float32[N].

    Raises:
        ValueError: an unknown format, or a value that is not finite.
    """
    if format == "int8":
        scales = int8.channel_scales(rows)
        return int8.quantize(rows, scales), scales
    if format == "fp8":
        scales = channel_scales(rows)
        return quantize(rows, scales).view(np.uint8), scales
    raise ValueError(f"table format is {format!r}, needed int8 or fp8")


def unpack_table_rows(
    codes: NDArray[np.int8] | NDArray[np.uint8], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The rows that `pack_table_rows` packed, float32[rows, D].

    Args:
        codes: int8[rows, D] of integers, or uint8[rows, D] of FP8 bits.
        scales: float32[rows].
    """
    if codes.dtype == np.int8:
        return int8.dequantize(codes.view(np.int8), scales)
    return dequantize(codes, scales)
