"""Convert float32 to symmetric int8 and back: q = round(x / scale), zero point 0.

Ranges are scaled to the levels -127 .. 127. -128 is left out: then both signs reach equally far,
-q is a level wherever q is one, and scale = amax / 127 hits the extreme exactly. The operator
QuantizeLinear does saturate at -128, which only activations beyond their range ever see;
`lowest=-128` simulates that. Rounding is to nearest, ties to even, after a true division, as there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVELS = 127
# Shares of a row's extreme that a clipped range may have; below 0.3 no row of 8 bits gains.
CLIP_GRID = tuple(1 - step * 0.025 for step in range(29))
BLOCK_ELEMENTS = 1 << 18  # of float32 held at once per temporary: stays in the cache


def require_finite(what: str, values: NDArray[np.floating]) -> float:
    """The largest magnitude of some values, 0 of none.

    Args:
        what: the values' name, for the message.
        values: float[...].

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    if not values.size:
        return 0.0
    amax = max(float(values.max()), -float(values.min()))  # both are NaN where one value is
    if not np.isfinite(amax):
        raise ValueError(f"{what} hold{'s' * (what[-1] != 's')} NaN or infinite values")
    return amax


def tensor_scale(amax: float) -> float:
    """The scale of a whole tensor with range [-amax, amax]; 1.0 for one of zeros."""
    return float(usable_scales(np.array(amax, np.float32) / np.float32(LEVELS)))


def channel_scales(
    weight: NDArray[np.float32], clip: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Scales per output channel.

    Args:
        weight: float32[N, K], finite.
        clip: float32[N], ranges from `search_clip`; None: each row's largest magnitude.

    Returns:
        float32[N], positive; 1.0 for a row of zeros (or of values that are none to float32).

    Raises:
        ValueError: a value that is not finite, or ranges that don't belong to these rows.
    """
    require_finite("the weights", weight)
    if clip is None:
        clip = row_amax(weight)
    elif clip.shape != weight.shape[:1]:
        raise ValueError(f"{list(clip.shape)} ranges given, {len(weight)} rows need one each")
    return usable_scales(clip / np.float32(LEVELS))


def row_amax(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest magnitude of each row: float32[N, K] -> float32[N]."""
    if not weight.shape[1]:
        return np.zeros(len(weight), np.float32)
    return np.maximum(weight.max(axis=1), -weight.min(axis=1))


def quantize(
    x: NDArray[np.float32], scales: ArrayLike, axis: int = 0, *, lowest: int = -LEVELS
) -> NDArray[np.int8]:
    """Round to levels.

    Args:
        x: float32[...], any shape, finite.
        scales: one number, or float32[C] along `axis`; positive.
        axis: of the channels.
        lowest: the most negative level; -128 is what QuantizeLinear does.

    Returns:
        int8[...], the shape of x.

    Raises:
        ValueError: a value that is not finite.
    """
    require_finite("the values", x)
    levels = x / along(scales, x.ndim, axis)
    np.rint(levels, out=levels)
    np.clip(levels, lowest, LEVELS, out=levels)
    return levels.astype(np.int8)


def dequantize(levels: NDArray[np.int8], scales: ArrayLike, axis: int = 0) -> NDArray[np.float32]:
    """The values that levels stand for: int8[...] -> float32[...]; arguments as in `quantize`."""
    values = levels.astype(np.float32)
    values *= along(scales, levels.ndim, axis)
    return values


def along(scales: ArrayLike, ndim: int, axis: int) -> NDArray[np.float32]:
    """Scales float32[channels] shaped to broadcast along one axis; one number stays one."""
    scales = np.asarray(scales, np.float32)
    if scales.ndim == 0:
        return scales
    shape = [1] * ndim
    shape[axis] = -1
    return scales.reshape(shape)


def search_clip(
    weight: NDArray[np.float32], column_weights: NDArray[np.floating] | None = None
) -> NDArray[np.float32]:
    """Ranges per row that cost the product least: sum_k c_k (w_k - dequantized w_k)^2.

    With c_k the mean square of input channel k this is the error of the row's output if inputs
    are uncorrelated. Tried are the row's extreme and shares of it (`CLIP_GRID`).

    Args:
        weight: float32[N, K], finite.
        column_weights: float[K], not negative; None: all alike.

    Returns:
        float32[N], at most the rows' largest magnitudes.

    Raises:
        ValueError: a value that is not finite, or column weights of another size.
    """
    require_finite("the weights", weight)
    num_rows, row_size = weight.shape
    importance = check_column_weights(column_weights, row_size)
    amax = row_amax(weight)
    clip = amax.copy()
    block = max(1, BLOCK_ELEMENTS // max(1, row_size))
    for start in range(0, num_rows, block):
        rows = slice(start, start + block)
        best = np.full(len(weight[rows]), np.inf, np.float32)
        for share in CLIP_GRID:
            ranges = amax[rows] * np.float32(share)
            error = _row_errors(weight[rows], ranges, importance)
            better = error < best
            best[better] = error[better]
            clip[rows][better] = ranges[better]
    return clip


def check_column_weights(
    column_weights: NDArray[np.floating] | None, row_size: int
) -> NDArray[np.float32]:
    """Importance of each input channel, scaled to a mean of 1; all alike where all are 0.

    Args:
        column_weights: float[K]; None: all alike.
        row_size: K.

    Returns:
        float32[K].

    Raises:
        ValueError: not float[K], negative, NaN or infinite.
    """
    if column_weights is None:
        return np.ones(row_size, np.float32)
    if column_weights.shape != (row_size,):
        raise ValueError(f"{list(column_weights.shape)} column weights given, {row_size} needed")
    require_finite("the column weights", column_weights)
    if (column_weights < 0).any():
        raise ValueError("the column weights hold negative values, needed mean squares")
    mean = column_weights.mean(dtype=np.float64)
    if mean == 0:
        return np.ones(row_size, np.float32)
    return (column_weights / mean).astype(np.float32)


def _row_errors(
    weight: NDArray[np.float32], ranges: NDArray[np.float32], importance: NDArray[np.float32]
) -> NDArray[np.float32]:
    scales = usable_scales(ranges / np.float32(LEVELS))[:, None]
    error: NDArray[np.float32] = weight / scales
    np.rint(error, out=error)
    np.clip(error, -LEVELS, LEVELS, out=error)
    error *= scales
    error -= weight
    # in units of the row's extreme: squares of weights of 1e-30 are 0 in float32
    error /= np.maximum(row_amax(weight), np.finfo(np.float32).tiny)[:, None]
    np.square(error, out=error)
    return error @ importance


def usable_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales with 1.0 where dividing by them would overflow: zeros and what is next to zero.

    float32[...] -> float32[...].
    """
    scales = np.array(scales, np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1
    return scales
