"""Search the scales of weight blocks that cost a product least, for `weight_only.py`.

The plain scale hits a block's extreme. A smaller one clips it and rounds all others finer; one of
the opposite sign gives the spare level of these formats (-8 of -8 .. 7) to the other side. Tried
are steps from 0.5 to 8/7 of the plain one with either sign, by the squared error of each block,
its columns weighted by the inputs' mean squares.

Where scales must be positive, the spare level is the negative side's. Tried are the same shares of
both steps that hit an extreme: that of the negative side, max|w| / 8, and of the positive, / 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .int8 import BLOCK_ELEMENTS, check_column_weights
from .weight_only import (
    cut_blocks,
    extreme_scales,
    lift_zeros,
    num_blocks,
    pack_codes,
    round_blocks,
    unclipped_scales,
)

# Steps in shares of the plain one. At 8 bits clipping hardly ever pays.
STEP_GRID = {
    4: (*(1 - step * 0.05 for step in range(11)), 1.05, 8 / 7),
    8: (1.0, 0.95, 0.9, 128 / 127),
}


def search_block_scales(
    rows: NDArray[np.float32],
    bits: int,
    block_size: int,
    column_weights: NDArray[np.floating] | None = None,
    *,
    positive: bool = False,
) -> NDArray[np.float32]:
    """Scales with the least weighted squared error; never worse than `pack_rows`' own.

    Args:
        rows: float32[N, K], finite.
        bits: 4 or 8.
        block_size: one of BLOCK_SIZES.
        column_weights: float[K], mean squares of the input channels; None: all alike.
        positive: of scales above 0 only.

    Returns:
        float32[N, blocks]; 0 marks a block of zeros, until `lift_zeros`.

    Raises:
        ValueError: a value that is not finite, or what MatMulNBits does not take.
    """
    row_size = rows.shape[1]
    importance = check_column_weights(column_weights, row_size)
    scales = np.empty((len(rows), num_blocks(row_size, block_size)), np.float32)
    importance = np.pad(importance, (0, scales.shape[1] * block_size - row_size))
    num_rows = max(1, BLOCK_ELEMENTS // max(1, row_size))
    for start in range(0, len(rows), num_rows):
        part = slice(start, start + num_rows)
        weights = cut_blocks(rows[part], bits, block_size)
        scales[part] = _search(weights, bits, importance.reshape(-1, block_size), positive)
    return scales


def pack_searched(
    rows: NDArray[np.float32],
    bits: int,
    block_size: int,
    column_weights: NDArray[np.floating] | None = None,
    *,
    positive: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round to nearest with searched scales; arguments and errors as in `pack_rows`.

    Args:
        rows: float32[N, K].
        bits: 4 or 8.
        block_size: weights that share a scale.
        column_weights: float[K], what an error in each column costs; None: all the same.
        positive: no scale below 0.

    Returns:
        packed: uint8[N, blocks, block_size * bits / 8].
        scales: float32[N, blocks].
    """
    scales = search_block_scales(rows, bits, block_size, column_weights, positive=positive)
    codes = round_blocks(cut_blocks(rows, bits, block_size), scales, bits)
    packed = pack_codes(codes.reshape(len(rows), -1), bits, block_size)
    return packed, lift_zeros(scales) if positive else scales


def _search(
    weights: NDArray[np.float32], bits: int, importance: NDArray[np.float32], positive: bool
) -> NDArray[np.float32]:
    """float32[N, blocks, block_size], float32[blocks, block_size] -> float32[N, blocks]."""
    plain = extreme_scales(weights, bits)
    best, others = plain, (1.0, -1.0)
    if positive:
        plain, best = np.abs(plain), unclipped_scales(weights, bits)
        middle = 1 << (bits - 1)
        others = (1.0, middle / (middle - 1))
    least = _errors(weights, best, plain, bits, importance)
    for factor in dict.fromkeys(share * other for share in STEP_GRID[bits] for other in others):
        scales = plain * np.float32(factor)
        error = _errors(weights, scales, plain, bits, importance)
        best = np.where(error < least, scales, best)
        least = np.minimum(error, least)
    return best


def _errors(
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    plain: NDArray[np.float32],
    bits: int,
    importance: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Weighted squared errors of blocks, in squares of their plain steps: they can't underflow."""
    middle = np.float32(1 << (bits - 1))
    unit = np.where(plain == 0, np.float32(1), plain)
    steps = np.where(plain == 0, np.float32(1), scales / unit)[:, :, None]
    wanted = weights / unit[:, :, None]
    error = wanted / steps
    np.rint(error, out=error)
    np.clip(error, -middle, middle - 1, out=error)
    error *= steps
    error -= wanted
    return np.einsum("nbk,nbk,bk->nb", error, error, importance)
