"""Convert weight blocks of 4 or 8 bits into those that a TensorRT takes, or one scale a row.

TensorRT wants positive scales, blocks that fill a row, and few sizes. A longer block is several
shorter ones of the same scale, exactly. A negative scale is turned with its levels, also exactly,
unless the block uses the level that has no opposite (-8 of -8 .. 7): then its levels are rounded
again on a step 8 / 7 as wide. What fits no block size is rounded to 8 bits with one scale a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# A scale of 0, of a block of zeros, becomes this: it must be positive, also as a float16
SMALLEST_SCALE = np.float32(2**-14)
LEAST_ROW_SCALE = np.float32(2**-24)  # the least float16: a row below it is one of zeros
Packing = Literal["nbits", "levels"]  # MatMulNBits' codes with an offset, or int8 and int4


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """What becomes of one matrix.

    Attributes:
        bits: of a level afterwards.
        block_size: weights that share a scale; None: a row.
        repeat: blocks that each old one is cut into.
        turns: some scales are not positive.
    """

    bits: int
    block_size: int | None
    repeat: int = 1
    turns: bool = False

    @property
    def precision(self) -> str:
        """As manifests name it."""
        blocks = "per row" if self.block_size is None else f"block {self.block_size}"
        return f"int{self.bits} {blocks}"


def plan_blocks(
    bits: int, block_size: int, row_size: int, turns: bool, allowed: tuple[int, ...]
) -> BlockPlan:
    """The largest block that is allowed, fills the rows and divides the old ones; else rows."""
    fitting = [b for b in allowed if row_size % b == 0 and block_size % b == 0]
    if not fitting:
        return BlockPlan(8, None)
    best = max(fitting)
    return BlockPlan(bits, best, block_size // best, turns)


def read_levels(rows: NDArray[Any], bits: int, packing: Packing, row_size: int) -> NDArray[np.int8]:
    """Unpack stored rows: any[rows, ...] -> levels int8[rows, K], around 0."""
    if rows.dtype in (np.dtype(np.int8), np.dtype(ml_dtypes.int4)):
        return rows.astype(np.int8).reshape(len(rows), -1)[:, :row_size]
    codes = rows.reshape(len(rows), -1)
    if bits == 4:
        codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(len(rows), -1)
    codes = codes[:, :row_size]
    if packing == "nbits":
        return (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    if bits == 4:  # two's complement in four bits
        return ((codes ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)
    return codes.view(np.int8)


def write_levels(levels: NDArray[np.int8], bits: int) -> NDArray[Any]:
    """Levels as ONNX stores int8, or int4 two to a byte, the even one in the low half.

    int8[N, K] -> int8[N, K], or uint8[N, K / 2] of 4 bits.
    """
    if bits == 8:
        return levels
    nibbles = levels.view(np.uint8) & np.uint8(15)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def convert(
    levels: NDArray[np.int8], scales: NDArray[np.float32], block_size: int, plan: BlockPlan
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Levels and scales of some rows by their plan.

    Args:
        levels: int8[rows, K].
        scales: float32[rows, old blocks], the last of which may be padding in part.
        block_size: the old one.
        plan: what they become.

    Returns:
        levels: int8[rows, K].
        scales: float32[rows, new blocks], or float32[rows] where a row is one block; positive.
    """
    if plan.block_size is None:
        return _round_rows(levels, scales, block_size)
    count = levels.shape[1] // plan.block_size
    scales = np.repeat(scales, plan.repeat, axis=1)[:, :count]
    blocks = levels.reshape(len(levels), count, plan.block_size)
    if plan.turns:
        blocks, scales = _turn(blocks, scales, plan.bits)
    is_zero = scales == 0
    if is_zero.any():  # whatever its levels say
        blocks = np.where(is_zero[:, :, None], np.int8(0), blocks)
    return blocks.reshape(levels.shape), np.where(is_zero, SMALLEST_SCALE, scales)


def _turn(
    blocks: NDArray[np.int8], scales: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    middle = 1 << (bits - 1)
    is_negative = scales < 0
    has_lowest = is_negative & (blocks == -middle).any(axis=2)
    turned = np.where(is_negative[:, :, None], -blocks.astype(np.int16), blocks)
    share = np.float32((middle - 1) / middle)
    turned = np.where(has_lowest[:, :, None], np.rint(turned * share), turned)
    size = np.abs(scales)
    return turned.astype(np.int8), np.where(has_lowest, size / share, size).astype(np.float32)


def _round_rows(
    levels: NDArray[np.int8], scales: NDArray[np.float32], block_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    wide = np.repeat(scales, block_size, axis=1)[:, : levels.shape[1]]
    weights = levels * wide
    row_scales = np.abs(weights).max(axis=1) / np.float32(127)
    row_scales = np.where(row_scales < LEAST_ROW_SCALE, SMALLEST_SCALE, row_scales)
    return np.rint(weights / row_scales[:, None]).astype(np.int8), row_scales.astype(np.float32)
