"""Pack float32 rows into the block-wise integers of ONNX Runtime's MatMulNBits, and unpack them.

A row of K weights is cut into blocks; each block has one float32 scale and integers
q = round(w / scale) + 2^(bits - 1). The scale is the block's extreme value (with its sign) divided
by -2^(bits - 1): the extreme is hit exactly and all 2^bits levels are used, at the price of half a
step where a block has both extremes. Rounding is to nearest, ties to even.

TensorRT takes positive scales only. Then the scale is the least at which neither side is clipped,
of levels -2^(bits - 1) .. 2^(bits - 1) - 1: a block whose extreme is positive has a coarser step.

Layout (com.microsoft.MatMulNBits, no zero_points): packed uint8[N, blocks, block_size * bits / 8],
scales float32[N, blocks]; with 4 bits the even element of a pair is the low nibble. A row whose K
is no multiple of the block is padded with zeros, which the kernel leaves out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CONTRIB = "com.microsoft"  # the domain of MatMulNBits and of ONNX Runtime's other own operators
# accuracy_level of MatMulNBits: its input is rounded to int8 in blocks while it runs, which is
# several times as fast as float32, and the weights' own rounding is the larger error.
INT8_ACTIVATIONS = 4
BITS = (4, 8)
INT8_LEVELS = 127  # of inputs that are rounded while a layer runs
SMALLEST_SCALE = 1e-30  # of a row of zeros, so that nothing is divided by 0
BLOCK_SIZES = (16, 32, 64, 128, 256)  # what MatMulNBits takes
ZERO_BLOCK_SCALE = 2.0**-14  # smallest normal float16: no narrower type makes a 0 of it


def num_blocks(row_size: int, block_size: int) -> int:
    """Blocks of a row of `row_size` weights; the last one may be padding in part."""
    return -(-row_size // block_size)


def pack_rows(
    rows: NDArray[np.float32], bits: int, block_size: int, *, positive: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize and pack rows of a weight matrix.

    Args:
        rows: float32[N, K], finite.
        bits: 4 or 8.
        block_size: one of BLOCK_SIZES.
        positive: scales above 0 only, that of a block of zeros is ZERO_BLOCK_SCALE.

    Returns:
        packed: uint8[N, blocks, block_size * bits / 8].
        scales: float32[N, blocks].

    Raises:
        ValueError: a width or block size MatMulNBits does not take, or a value that is not finite.
    """
    weights = cut_blocks(rows, bits, block_size)
    scales = unclipped_scales(weights, bits) if positive else extreme_scales(weights, bits)
    packed = _pack(round_blocks(weights, scales, bits), bits)
    return packed, lift_zeros(scales) if positive else scales


def pack_codes(codes: NDArray[np.uint8], bits: int, block_size: int) -> NDArray[np.uint8]:
    """Pack levels that were chosen elsewhere.

    Args:
        codes: uint8[N, K], below 2^bits; scale * (code - 2^(bits - 1)) is the weight.
        bits: 4 or 8.
        block_size: one of BLOCK_SIZES.

    Returns:
        uint8[N, blocks, block_size * bits / 8].

    Raises:
        ValueError: a width or block size MatMulNBits does not take, or a code that is too large.
    """
    _check(bits, block_size)
    if codes.size and codes.max() >> bits:
        raise ValueError(f"the codes reach {codes.max()}, {bits} bits hold {(1 << bits) - 1}")
    num_rows, row_size = codes.shape
    blocks = num_blocks(row_size, block_size)
    padding = blocks * block_size - row_size
    codes = np.pad(codes, ((0, 0), (0, padding)), constant_values=1 << (bits - 1))
    return _pack(codes.reshape(num_rows, blocks, block_size), bits)


def cut_blocks(rows: NDArray[np.float32], bits: int, block_size: int) -> NDArray[np.float32]:
    """float32[N, K] -> float32[N, blocks, block_size], padded with zeros.

    Raises:
        ValueError: a width or block size MatMulNBits does not take.
    """
    _check(bits, block_size)
    num_rows, row_size = rows.shape
    blocks = num_blocks(row_size, block_size)
    if padding := blocks * block_size - row_size:
        rows = np.pad(rows, ((0, 0), (0, padding)))
    return rows.reshape(num_rows, blocks, block_size)


def extreme_scales(weights: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Scales that hit each block's extreme: float32[N, blocks, block_size] -> float32[N, blocks].

    Raises:
        ValueError: a value that is not finite.
    """
    return _check_scales(_extremes(weights) * np.float32(-1 / (1 << (bits - 1))))


def unclipped_scales(weights: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The least positive scales that clip nothing; errors as in `extreme_scales`.

    Every weight is within half a step. 0 still marks a block of zeros, until `lift_zeros`.
    float32[N, blocks, block_size] -> float32[N, blocks].
    """
    middle = 1 << (bits - 1)
    above = weights.max(axis=2) * np.float32(1 / (middle - 1))
    below = weights.min(axis=2) * np.float32(-1 / middle)
    return _check_scales(np.maximum(above, below))


def lift_zeros(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales of blocks of zeros, from 0 to ZERO_BLOCK_SCALE: for readers that refuse a 0.

    float32[N, blocks] -> float32[N, blocks].
    """
    return np.where(scales == 0, np.float32(ZERO_BLOCK_SCALE), scales)


def round_blocks(
    weights: NDArray[np.float32], scales: NDArray[np.float32], bits: int
) -> NDArray[np.uint8]:
    """Nearest levels; the middle one where a scale is 0.

    Args:
        weights: float32[N, blocks, block_size].
        scales: float32[N, blocks].
        bits: 4 or 8.

    Returns:
        uint8[N, blocks, block_size].
    """
    middle = 1 << (bits - 1)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=_usable(scales))
    levels = weights * inverse[:, :, None]
    np.rint(levels, out=levels)
    levels += np.float32(middle)
    np.clip(levels, 0, np.float32(2 * middle - 1), out=levels)
    return levels.astype(np.uint8)


def unpack_rows(
    packed: NDArray[np.uint8], scales: NDArray[np.float32], bits: int, row_size: int
) -> NDArray[np.float32]:
    """The weights that packed integers stand for.

    Args:
        packed: uint8[N, blocks, block_size * bits / 8].
        scales: float32[N, blocks].
        bits: 4 or 8.
        row_size: K, without the padding.

    Returns:
        float32[N, K].
    """
    levels = _unpack_codes(packed, bits).astype(np.float32) - np.float32(1 << (bits - 1))
    weights = levels * scales[:, :, None]
    return weights.reshape(len(packed), -1)[:, :row_size]


def unpack_shifted(
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
    bits: int,
    row_size: int,
) -> NDArray[np.float32]:
    """The weights that packed integers with a zero point for each block stand for.

    Args:
        packed: uint8[N, blocks, block_size * bits / 8].
        scales: float32[N, blocks].
        zero_points: uint8[N, blocks * bits / 8], rounded up to whole bytes.
        bits: 4 or 8.
        row_size: K, without the padding.

    Returns:
        float32[N, K].
    """
    rows = zero_points.reshape(len(packed), -1)
    if bits == 4:
        rows = np.stack((rows & 15, rows >> 4), axis=2).reshape(len(packed), -1)
    shifts = rows[:, : packed.shape[1]].astype(np.float32)
    levels = _unpack_codes(packed, bits).astype(np.float32) - shifts[:, :, None]
    weights = levels * scales[:, :, None]
    return weights.reshape(len(packed), -1)[:, :row_size]


def _unpack_codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """uint8[N, blocks, block_size]."""
    if bits == 8:
        return packed
    codes = np.empty((*packed.shape, 2), np.uint8)
    codes[..., 0], codes[..., 1] = packed & 15, packed >> 4
    flat: NDArray[np.uint8] = codes.reshape(*packed.shape[:2], -1)
    return flat


def _extremes(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The value of largest magnitude along the last axis, NaN before all.

    Bits of floats without their sign order as the magnitudes do; with the sign moved behind them
    one integer maximum finds value and sign, in half the time of two float ones.
    """
    bits = weights.view(np.uint32)
    keys = bits << 1
    keys |= bits >> 31
    largest = keys.max(axis=2)
    return (largest >> 1 | largest << 31).view(np.float32)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return codes
    pairs = codes.view(np.uint16)  # little-endian: even element in the low byte
    return (pairs | pairs >> 4).astype(np.uint8)


def _check_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(scales).all():
        raise ValueError("the weights hold NaN or infinite values")
    # A block of zeros, or of values so small that 1 / scale overflows, becomes zeros.
    return np.where(_usable(scales), scales, np.float32(0))


def _usable(scales: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.abs(scales) >= np.finfo(np.float32).tiny


def _check(bits: int, block_size: int) -> None:
    if bits not in BITS:
        raise ValueError(f"{bits} bits are not supported, only {BITS}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block size {block_size} is not supported, only {BLOCK_SIZES}")
