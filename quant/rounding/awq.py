"""Find factors per input channel that save the weights that matter (AWQ).

AWQ (arXiv 2306.00978): weights whose inputs are large are multiplied by s_j > 1 before blocks are
rounded, and the inputs divided by it, which the caller folds into the norm or linear before. Their
own rounding error shrinks by s_j, their blocks' steps grow little. s = mean(|x|)^a, normalized as
the paper's code has it, a on a grid, by the error of the layer's output.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .block_scales import pack_searched
from .int8 import require_finite
from .smooth import MAX_OUTPUTS, MAX_ROWS, MAX_SCALE, relative_error, spread
from .weight_only import pack_rows, unpack_rows

GRID = 20


class ChannelScales(NamedTuple):
    """What `search_scales` found.

    Attributes:
        scales: float32[K], s: the weight's columns are multiplied by it, inputs divided.
        error: relative error of the layer's output with them, searched block scales included.
        exponent: a; 0: all scales are 1.
        errors: exponent tried -> error; "nearest" is that of `pack_rows`.
    """

    scales: NDArray[np.float32]
    error: float
    exponent: float
    errors: dict[float | str, float]


def search_scales(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bits: int,
    block_size: int,
    *,
    grid: int = GRID,
    channels: NDArray[np.int64] | None = None,
    exact: bool = False,
    positive: bool = False,
) -> ChannelScales:
    """The channel scales whose rounded layer comes closest to the float one.

    Args:
        x: float32[R, K], rows of the layer's input; 512 of them, evenly spaced, are used.
        weight: float32[N, K]; 512 of its rows, evenly spaced, are used.
        bits: 4 or 8.
        block_size: one of BLOCK_SIZES.
        grid: exponents tried are 0, 1 / grid ... 1.
        channels: int64[K], equal numbers for channels that must share a scale; None: each its own.
        exact: powers of two only, as in `smooth.migration_scales`.
        positive: block scales above 0 only, as in `pack_rows`.

    Raises:
        ValueError: shapes that don't fit, a value that is not finite, or what MatMulNBits does not
            take.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or not len(x):
        raise ValueError(
            f"x is {list(x.shape)}, the weight {list(weight.shape)}, needed [R, K] and [N, K]"
        )
    if grid < 1:
        raise ValueError(f"grid is {grid}, needed at least 1")
    require_finite("the activations", x)
    require_finite("the weights", weight)
    mean: NDArray[np.float32] = np.abs(x).mean(axis=0)
    mean_square = np.square(x, dtype=np.float64).mean(axis=0)
    if channels is not None:
        mean = _average_shared(mean, channels)
    x, weight = spread(x, MAX_ROWS), spread(weight, MAX_OUTPUTS)
    wanted = x @ weight.T

    packed = pack_rows(weight, bits, block_size, positive=positive)
    rounded = unpack_rows(*packed, bits, weight.shape[1])
    errors: dict[float | str, float] = {"nearest": relative_error(wanted, x @ rounded.T)}
    tried: dict[float, NDArray[np.float32]] = {}
    for exponent in (step / grid for step in range(grid + 1)):
        s = tried[exponent] = _scale(mean, exponent, exact)
        squares = mean_square / s**2
        packed = pack_searched(weight * s, bits, block_size, squares, positive=positive)
        rounded = unpack_rows(*packed, bits, weight.shape[1])
        errors[exponent] = relative_error(wanted, x @ (rounded / s).T)
    best = min(tried, key=lambda exponent: errors[exponent])
    return ChannelScales(tried[best], errors[best], best, errors)


def _scale(mean: NDArray[np.float32], exponent: float, exact: bool) -> NDArray[np.float32]:
    """mean^exponent over the root of its largest times its smallest; 1 where no input is."""
    scales = np.ones(len(mean), np.float32)
    used = mean > 0
    if not used.any():
        return scales
    powers = exponent * np.log2(mean[used].astype(np.float64))
    powers -= (powers.max() + powers.min()) / 2
    if exact:
        powers = np.rint(powers)
    scales[used] = np.exp2(np.clip(powers, -np.log2(MAX_SCALE), np.log2(MAX_SCALE)))
    return scales


def _average_shared(mean: NDArray[np.float32], channels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each channel's mean replaced by that of all channels with its number."""
    sums = np.bincount(channels, mean)
    return (sums / np.maximum(np.bincount(channels), 1))[channels].astype(np.float32)
