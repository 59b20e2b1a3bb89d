"""Round a weight so that its errors cancel in the layer's output (GPTQ).

GPTQ (arXiv 2210.17323) rounds a weight's columns one after the other and lets those that follow
make up for the error so far, as well as they can for inputs with second moments H = X^T X. It is
written here as LDLQ, of which the QuIP paper (arXiv 2307.13304, theorem 6) shows that it gives
the same levels:

    H + damping = (U + 1) D (U + 1)^T, U strictly upper triangular
    q_k = round(w_k + sum over j < k of (w_j - q_j) U_jk)

which takes one Cholesky factorization, in place, and no inverse.
Columns are done in chunks: what earlier chunks feed into one is a single matrix product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .block_scales import search_block_scales
from .int8 import LEVELS, require_finite
from .weight_only import lift_zeros, num_blocks, pack_codes

# Added to the diagonal of H, as a share of its mean; the paper's value.
DAMPING = 0.01
CHUNK = 128  # columns, where no block size says otherwise
CHOLESKY_BLOCK = 512

# (columns of a chunk, float32[chunk, N], as they best make up for all errors before it; its start)
# -> what rounds its i-th column: (float32[N], i) -> levels, values
RoundColumn = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.float32]]]
StartChunk = Callable[[NDArray[np.float32], int], RoundColumn]


def add_moments(moments: NDArray[np.floating], x: NDArray[np.float32]) -> None:
    """Add X^T X in place, a few rows of it at a time: no second K^2 numbers.

    Args:
        moments: float32 or float64[K, K].
        x: float32[R, K].

    Raises:
        ValueError: sizes that differ, or a value that is not finite; nothing was added then.
    """
    size = len(moments)
    if moments.shape != (size, size) or x.ndim != 2 or x.shape[1] != size:
        raise ValueError(f"activations are {list(x.shape)}, moments {list(moments.shape)}")
    require_finite("the activations", x)
    for start in range(0, size, 1024):
        part = slice(start, start + 1024)
        moments[part] += x[:, part].T @ x


def quantize_rows(
    weight: NDArray[np.float32],
    moments: NDArray[np.floating],
    scales: NDArray[np.float32],
    *,
    input_scales: NDArray[np.float32] | None = None,
    damping: float = DAMPING,
    act_order: bool = True,
) -> NDArray[np.int8]:
    """Levels of int8 with a scale per row.

    Args:
        weight: float32[N, K], finite.
        moments: float[K, K], X^T X of the layer's inputs, or their mean.
        scales: float32[N], of `int8.channel_scales`.
        input_scales: float32[K], what inputs were divided by after they were measured.
        damping: share of the moments' mean diagonal that is added to it.
        act_order: do the columns with the largest inputs first.

    Returns:
        int8[N, K], -127 .. 127.

    Raises:
        ValueError: sizes that don't fit, values that are not finite, or moments of no inputs.
    """
    _check(weight, moments)
    if scales.shape != weight.shape[:1] or not (scales > 0).all():
        raise ValueError(f"{list(scales.shape)} scales given, {len(weight)} positive ones needed")

    def start_chunk(columns: NDArray[np.float32], start: int) -> RoundColumn:
        def round_column(
            column: NDArray[np.float32], index: int
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            levels = np.clip(np.rint(column / scales), -LEVELS, LEVELS)
            return levels, levels * scales

        return round_column

    order = _order(moments, input_scales, act_order)
    feedback = _factorize(moments, input_scales, order, damping)
    return _restore(_round(weight, order, feedback, CHUNK, start_chunk), order).astype(np.int8)


def quantize_blocks(
    weight: NDArray[np.float32],
    moments: NDArray[np.floating],
    bits: int,
    block_size: int,
    *,
    input_scales: NDArray[np.float32] | None = None,
    damping: float = DAMPING,
    act_order: bool = True,
    positive: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Packed levels and scales of blocks, as `pack_rows` lays them out.

    Args:
        weight: float32[N, K], finite.
        moments: float[K, K], X^T X of the layer's inputs, or their mean.
        bits: 4 or 8.
        block_size: one of BLOCK_SIZES.
        input_scales: float32[K], what inputs were divided by after they were measured.
        damping: share of the moments' mean diagonal that is added to it.
        act_order: do the columns with the largest inputs first; scales are then those of the
            weight as it was, blocks stay blocks of neighbouring columns. False: a block's scales
            are found when its turn comes, with the errors fed in.
        positive: scales above 0 only, as in `pack_rows`.

    Returns:
        packed: uint8[N, blocks, block_size * bits / 8].
        scales: float32[N, blocks].

    Raises:
        ValueError: as in `quantize_rows`, or what MatMulNBits does not take.
    """
    _check(weight, moments)
    mean_squares = _mean_squares(moments, input_scales)
    middle = np.float32(1 << (bits - 1))
    order = _order(moments, input_scales, act_order)
    if act_order:
        scales = search_block_scales(weight, bits, block_size, mean_squares, positive=positive)
    else:
        shape = len(weight), num_blocks(weight.shape[1], block_size)
        scales = np.zeros(shape, np.float32)

    def start_chunk(columns: NDArray[np.float32], start: int) -> RoundColumn:
        if not act_order:
            part = slice(start, start + len(columns))
            block = np.ascontiguousarray(columns.T)
            squares = mean_squares[part]
            found = search_block_scales(block, bits, block_size, squares, positive=positive)
            scales[:, start // block_size] = found[:, 0]

        def round_column(
            column: NDArray[np.float32], index: int
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            steps = scales[:, order[start + index] // block_size]
            divided = np.divide(column, steps, out=np.zeros_like(column), where=steps != 0)
            levels = np.clip(np.rint(divided), -middle, middle - 1)
            return levels + middle, levels * steps

        return round_column

    feedback = _factorize(moments, input_scales, order, damping)
    codes = _round(weight, order, feedback, block_size, start_chunk)
    packed = pack_codes(_restore(codes, order).astype(np.uint8), bits, block_size)
    return packed, lift_zeros(scales) if positive else scales


def output_error(
    weight: NDArray[np.float32], got: NDArray[np.float32], moments: NDArray[np.floating]
) -> float:
    """Relative error of the layer's output over all inputs: ||X (W - got)^T|| / ||X W^T||.

    Args:
        weight: float32[out, in].
        got: float32[out, in], its rounded values.
        moments: float[in, in], X^T X.
    """

    def squared(rows: NDArray[np.float32]) -> float:
        return sum(
            float(np.vdot(part @ moments, part).real)
            for part in np.array_split(rows, max(1, len(rows) // 256))
        )

    size = squared(weight)
    return float(np.sqrt(max(0.0, squared(weight - got)) / size)) if size > 0 else 0.0


def _round(
    weight: NDArray[np.float32],
    order: NDArray[np.intp],
    feedback: NDArray[np.float32],
    chunk: int,
    start_chunk: StartChunk,
) -> NDArray[np.float32]:
    """Levels in the order in which columns are done: float32[K, N]."""
    columns = np.ascontiguousarray(weight.T[order])  # a column of the weight is a row here
    errors = np.zeros(columns.shape, np.float32)
    codes = np.empty(columns.shape, np.float32)
    for start in range(0, len(columns), chunk):
        stop = min(start + chunk, len(columns))
        fed: NDArray[np.float32] = feedback[:start, start:stop].T @ errors[:start]
        # What the chunk would be if none of it were rounded: (U + 1) of the chunk undone.
        within = np.linalg.inv(np.triu(feedback[start:stop, start:stop])).astype(np.float32)
        correction: NDArray[np.float32] = within.T @ fed
        round_column = start_chunk(columns[start:stop] + correction, start)
        wanted = columns[start:stop] + fed
        for k in range(start, stop):
            column = wanted[k - start] + feedback[start:k, k] @ errors[start:k]
            codes[k], values = round_column(column, k - start)
            np.subtract(columns[k], values, out=errors[k])
    return codes


def _restore(codes: NDArray[np.float32], order: NDArray[np.intp]) -> NDArray[np.float32]:
    """float32[K, N] in the order of work -> float32[N, K] in the weight's."""
    restored = np.empty((codes.shape[1], codes.shape[0]), np.float32)
    restored[:, order] = codes.T
    return restored


def _order(
    moments: NDArray[np.floating], input_scales: NDArray[np.float32] | None, act_order: bool
) -> NDArray[np.intp]:
    if not act_order:
        return np.arange(len(moments))
    return np.argsort(-_mean_squares(moments, input_scales), kind="stable")


def _mean_squares(
    moments: NDArray[np.floating], input_scales: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    diagonal = np.diagonal(moments).astype(np.float64)
    return (
        diagonal if input_scales is None else diagonal / np.square(input_scales, dtype=np.float64)
    )


def _factorize(
    moments: NDArray[np.floating],
    input_scales: NDArray[np.float32] | None,
    order: NDArray[np.intp],
    damping: float,
) -> NDArray[np.float32]:
    """U + 1 of the damped moments: float32[K, K], upper triangular; below it are leftovers.

    A Cholesky factor is lower; that of the matrix turned around, turned around, is upper.
    """
    reverse = order[::-1]
    for dtype in (np.float32, np.float64):
        turned = moments[np.ix_(reverse, reverse)].astype(dtype, copy=False)
        if input_scales is not None:
            turned /= input_scales[reverse].astype(dtype)
            turned /= input_scales[reverse].astype(dtype)[:, None]
        mean = float(turned.diagonal().mean(dtype=np.float64))
        if not mean > 0:
            raise ValueError("the inputs' second moments are zero: no activations were seen")
        turned /= dtype(mean)
        turned[np.diag_indices(len(turned))] += dtype(damping)
        try:
            _cholesky(turned)
        except np.linalg.LinAlgError:  # with rounding; float64 has less of it
            continue
        turned /= turned.diagonal().copy()
        return turned.astype(np.float32, copy=False)[::-1, ::-1]
    raise ValueError(
        f"the inputs' second moments are not positive definite with damping {damping}: take more "
        "examples or more damping"
    )


def _cholesky(matrix: NDArray[np.floating]) -> None:
    """The lower factor in place of the lower triangle.

    numpy's own takes six copies of a float32 matrix, as it computes in float64 only.

    Raises:
        LinAlgError: the matrix is not positive definite.
    """
    for start in range(0, len(matrix), CHOLESKY_BLOCK):
        stop = min(start + CHOLESKY_BLOCK, len(matrix))
        matrix[start:, start:stop] -= matrix[start:, :start] @ matrix[start:stop, :start].T
        corner = np.linalg.cholesky(matrix[start:stop, start:stop])
        if not np.isfinite(corner).all():
            raise np.linalg.LinAlgError("not positive definite")
        matrix[start:stop, start:stop] = corner
        matrix[stop:, start:stop] = matrix[stop:, start:stop] @ np.linalg.inv(corner).T


def _check(weight: NDArray[np.float32], moments: NDArray[np.floating]) -> None:
    size = weight.shape[1]
    if moments.shape != (size, size):
        raise ValueError(f"the moments are {list(moments.shape)}, needed [{size}, {size}]")
    require_finite("the weights", weight)
    require_finite("the moments", moments)
