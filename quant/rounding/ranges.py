"""Find the range [-amax, amax] of a quantized activation from its histogram of magnitudes.

    minmax      the largest magnitude: nothing is clipped, one outlier costs all others resolution
    percentile  the magnitude that the given share of values does not exceed
    entropy     the range whose 128 levels keep the distribution best: the least KL(P || Q)
                (S. Migacz, "8-bit Inference with TensorRT", GTC 2017, the calibration's pseudocode)
    mse         the range with the least expected squared error, of rounding and of clipping;
                `find_output_amax` weighs each channel's error by the layer's column for it

Formats are "int8" (levels 0 .. 127 steps, and their negatives) and "fp8" (the finite values of
E4M3FN). Whatever the method needs inside a bin, values are taken to lie evenly in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .histogram import NUM_BINS, Histogram
from .int8 import require_finite

RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]
RangeFormat = Literal["int8", "fp8"]

# Magnitudes that a format has, in units of its scale.
GRIDS: dict[RangeFormat, NDArray[np.float64]] = {
    "int8": np.arange(128, dtype=np.float64),
    "fp8": np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64),
}
# Ranges tried by "mse", in shares of the largest magnitude. Where FP8's levels fall within an
# octave depends on the scale, so ranges up to twice the largest magnitude are tried as well.
MSE_SHARES: dict[RangeFormat, NDArray[np.float64]] = {
    "int8": np.geomspace(2.0**-6, 1, 97),
    "fp8": np.geomspace(2.0**-3, 2, 65),
}
NUM_ENTROPY_LEVELS = 128


def find_amax(
    histogram: Histogram,
    method: RangeMethod,
    *,
    format: RangeFormat = "int8",
    percentile: float = 99.99,
) -> float:
    """The range of an activation.

    Args:
        histogram: of its magnitudes.
        method: as listed above.
        format: what it is quantized to.
        percentile: of all values, zeros too; only of method "percentile".

    Returns:
        amax >= 0; 0 if no value but zero was seen.

    Raises:
        ValueError: no values at all, an unknown method or format, a percentile outside (0, 100],
            or entropy for FP8: the method is defined for equal steps.
    """
    if method not in get_args(RangeMethod):
        raise ValueError(f"range method is {method!r}, needed one of {', '.join(_METHODS)}")
    if format not in GRIDS:
        raise ValueError(f"format is {format!r}, needed one of {', '.join(GRIDS)}")
    if method == "entropy" and format == "fp8":
        raise ValueError("range method entropy is for the equal steps of int8, take minmax for fp8")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}, needed more than 0 and at most 100")
    if not histogram.count:
        raise ValueError("the histogram is empty: no activations were seen, run more examples")
    if histogram.amax == 0:
        return 0.0
    return _METHODS[method](histogram, format, percentile)


def find_output_amax(
    x: NDArray[np.float32], channel_weights: NDArray[np.floating], *, format: RangeFormat = "int8"
) -> float:
    """The range of a layer's input that costs its output least squared error.

    "mse" of the values alone may clip a channel whose column of the weight is large, as outliers'
    columns are after their migration. Here errors of channels are taken to be independent.

    Args:
        x: float32[R, K], rows of the input.
        channel_weights: float[K], sums of squares of the weight's columns.
        format: what it is quantized to.

    Returns:
        amax >= 0, as in `find_amax`.

    Raises:
        ValueError: no rows, sizes that differ, a value that is not finite.
    """
    if x.ndim != 2 or not x.size or channel_weights.shape != x.shape[1:]:
        raise ValueError(
            f"x is {list(x.shape)}, its channels' weights {list(channel_weights.shape)}"
        )
    require_finite("the channels' weights", channel_weights)
    histogram = Histogram.of(x)
    if histogram.amax == 0:
        return 0.0
    bins = np.ldexp(np.abs(x), 11 - histogram.exponent).astype(np.intp)
    weights = np.broadcast_to(channel_weights.astype(np.float64), x.shape)
    mass = np.bincount(bins.ravel(), weights.ravel(), NUM_BINS)
    ranges = histogram.amax * MSE_SHARES[format]
    return float(ranges[np.argmin(_squared_errors(histogram, mass, ranges, format))])


def expected_error(histogram: Histogram, amax: float, format: RangeFormat = "int8") -> float:
    """Root mean square error of quantizing in [-amax, amax], as a share of the values' own.

    Raises:
        ValueError: `amax` is not positive.
    """
    if not amax > 0:
        raise ValueError(f"amax is {amax}, needed a positive range")
    if histogram.sum_squares == 0:
        return 0.0
    error = _squared_errors(histogram, histogram.counts, np.array([amax]), format)[0]
    return float(np.sqrt(error / histogram.sum_squares))


def _minmax(histogram: Histogram, format: RangeFormat, percentile: float) -> float:
    return histogram.amax


def _percentile(histogram: Histogram, format: RangeFormat, percentile: float) -> float:
    wanted = histogram.count * (percentile / 100)
    below = np.cumsum(histogram.counts)
    index = int(np.searchsorted(below, wanted))
    count = histogram.counts[index]
    share = (wanted - (below[index] - count)) / count
    low, high = _bounds(histogram)
    return min(float(low[index] + share * (high[index] - low[index])), histogram.amax)


def _entropy(histogram: Histogram, format: RangeFormat, percentile: float) -> float:
    """All candidates at once: both distributions enter KL only by sums over runs of bins.

    P is bins 0 .. i-1, with all beyond added to the last of them. Q is the same bins, without
    those beyond, merged to 128 levels, each spread evenly over its bins that are not empty:
    KL = sum p log p - sum over levels (its share of P) log (its height in Q).
    """
    counts = histogram.counts.astype(np.float64)
    total = counts.sum()
    sizes = np.arange(NUM_ENTROPY_LEVELS, len(counts) + 1)  # i
    levels = np.arange(NUM_ENTROPY_LEVELS + 1)
    cuts = -(-levels * sizes[:, None] // NUM_ENTROPY_LEVELS)  # [sizes, 129]: first bin of a level
    mass = np.diff(_prefix(counts)[cuts], axis=1)
    occupied = np.diff(_prefix(counts > 0)[cuts], axis=1)
    inside = mass.sum(axis=1)
    height = mass / np.maximum(occupied, 1) / np.maximum(inside, 1)[:, None]
    log_height = np.log(height, out=np.zeros_like(height), where=height > 0)

    last = counts[sizes - 1]
    outside = total - inside
    p_log_p = _prefix(_x_log_x(counts / total))[sizes - 1] + _x_log_x((last + outside) / total)
    divergence = p_log_p - ((mass * log_height).sum(axis=1) + outside * log_height[:, -1]) / total
    # What lies beyond is added to a bin; where that one is empty, Q has nothing there: infinite.
    divergence[(outside > 0) & (last == 0)] = np.inf
    best = int(np.argmin(divergence))
    threshold = (sizes[best] + 0.5) * float(histogram.edges[1])
    return min(threshold, histogram.amax)


def _mse(histogram: Histogram, format: RangeFormat, percentile: float) -> float:
    ranges = histogram.amax * MSE_SHARES[format]
    return float(ranges[np.argmin(_squared_errors(histogram, histogram.counts, ranges, format))])


_METHODS: dict[RangeMethod, Callable[[Histogram, RangeFormat, float], float]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}


def _squared_errors(
    histogram: Histogram,
    mass: NDArray[np.int64] | NDArray[np.float64],
    ranges: NDArray[np.float64],
    format: RangeFormat,
) -> NDArray[np.float64]:
    """Expected sums of squared errors, one a range: float64[R] -> float64[R].

    `mass` is the histogram's counts, or what takes their place.
    """
    grid = GRIDS[format]
    middles = (grid[1:] + grid[:-1]) / 2
    used = np.flatnonzero(mass)
    low, high = (bound[used] for bound in _bounds(histogram))
    density = mass[used] / (high - low)
    # Integral of (x - its level)^2 from 0 to the start of each level's interval
    starts = np.concatenate(([0.0], middles))
    ends = np.concatenate((middles, [middles[-1]]))
    before = np.concatenate(([0.0], np.cumsum((ends - grid) ** 3 - (starts - grid) ** 3)[:-1])) / 3
    before -= (starts - grid) ** 3 / 3

    def integral(x: NDArray[np.float64]) -> NDArray[np.float64]:
        level = np.searchsorted(middles, x)
        distance = x - grid[level]
        return before[level] + distance * distance * distance / 3  # NumPy's power is slow

    scales = ranges / grid[-1]
    return np.array(
        [
            scale**3 * (density @ (integral(high / scale) - integral(low / scale)))
            for scale in scales
        ]
    )


def _bounds(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where values of each bin lie: its edges, but hardly any above the largest.

    A bin keeps a thousandth of its width, so that no density is infinite.
    """
    low, high = histogram.edges[:-1], histogram.edges[1:]
    return low, np.maximum(np.minimum(high, histogram.amax), low + (high - low) / 1024)


def _prefix(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2 ... values."""
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * np.log(x, out=np.zeros_like(x), where=x > 0)
