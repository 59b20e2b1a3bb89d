"""Find factors that move outliers of a linear layer's input into its weights (SmoothQuant).

X W^T = (X / s) (s W)^T for any positive s per input channel (SmoothQuant, arXiv 2211.10438). With
s_j = amax(X_j)^a / amax(W_j)^(1 - a) large channels shrink in the activation, which has one range
for all, and grow in the weight, which has a range per row. 1 / s is folded into the norm or linear
that makes X. The strength `a` is searched per layer by the layer's own output error, against
leaving it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import fp8, int8
from .histogram import Histogram
from .int8 import require_finite
from .ranges import RangeFormat, RangeMethod, find_amax, find_output_amax

ActivationFormat = Literal["int8", "int8-dynamic", "fp8"]
RoundInput = Callable[[NDArray[np.float32]], NDArray[np.float32]]

STRENGTHS = tuple(step / 10 for step in range(11))
# No channel moves further: folded weights must stay in float16's range.
MAX_SCALE = 2.0**12
# Of rows and output channels that a search looks at.
MAX_ROWS = 512
MAX_OUTPUTS = 512


class Migration(NamedTuple):
    """What `search_strength` found.

    Attributes:
        strength: None: the layer is left alone, scales are ones.
        scales: float32[K], s.
        errors: strength tried -> relative error of the layer's output.
        amax: range of all given rows of x / s, by the method asked for; None for "int8-dynamic".
    """

    strength: float | None
    scales: NDArray[np.float32]
    errors: dict[float | None, float]
    amax: float | None


def migration_scales(
    channel_amax: NDArray[np.float32],
    weight_amax: NDArray[np.float32],
    strength: float,
    *,
    exact: bool = True,
) -> NDArray[np.float32]:
    """Factors s_j = a_j^strength / w_j^(1 - strength), about 1 in geometric mean.

    Args:
        channel_amax: float32[K], largest magnitudes of the input channels.
        weight_amax: float32[K], largest magnitudes of the weight's columns.
        strength: 0 flattens the weight's columns, 1 the input's channels.
        exact: round them to powers of two: then folding changes exponents only, and the folded
            model computes the same bits as before in float32, bfloat16 and float16 (but for
            under- and overflow), so that "exact in float" can be tested by equality.

    Returns:
        float32[K], within 2^-12 .. 2^12; 1 where a channel is never used.

    Raises:
        ValueError: sizes that differ, a value that is negative or not finite, a strength outside
            0 .. 1.
    """
    if channel_amax.shape != weight_amax.shape or channel_amax.ndim != 1:
        raise ValueError(
            f"channel_amax is {list(channel_amax.shape)}, weight_amax {list(weight_amax.shape)}, "
            "needed [K] both"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, needed 0 to 1")
    for what, amax in (("the channels' amax", channel_amax), ("the weights' amax", weight_amax)):
        require_finite(what, amax)
        if (amax < 0).any():
            raise ValueError(f"{what} holds negative values")
    scales = np.ones(len(channel_amax), np.float32)
    used = (channel_amax > 0) & (weight_amax > 0)
    if not used.any():
        return scales
    powers = strength * np.log2(channel_amax[used].astype(np.float64))
    powers -= (1 - strength) * np.log2(weight_amax[used].astype(np.float64))
    powers -= powers.mean()
    if exact:
        powers = np.rint(powers)
    scales[used] = np.exp2(np.clip(powers, -np.log2(MAX_SCALE), np.log2(MAX_SCALE)))
    return scales


def search_strength(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    format: ActivationFormat = "int8",
    *,
    method: RangeMethod = "minmax",
    percentile: float = 99.99,
    channel_amax: NDArray[np.float32] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    channels: NDArray[np.int64] | None = None,
    exact: bool = True,
) -> Migration:
    """The strength whose quantized layer comes closest to the float one: never worse than none.

    Args:
        x: float32[R, K], rows of the layer's input; 512 of them, evenly spaced, are used.
        weight: float32[N, K]; all of it gives the columns' ranges, 512 rows the error.
        format: of the input; the weight is the same with a scale per row.
        method: finds the input's range; "mse" weighs channels by their columns. Not used by
            "int8-dynamic", which has a range per row.
        percentile: of method "percentile".
        channel_amax: float32[K], over all that was calibrated; None: that of x.
        strengths: to try.
        channels: int64[K], equal numbers for input channels that must share a factor, because
            they are copies of one channel of what it is folded into; None: each has its own.
        exact: as in `migration_scales`.

    Raises:
        ValueError: shapes that don't fit, an unknown format, a value that is not finite.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or not len(x):
        raise ValueError(
            f"x is {list(x.shape)}, the weight {list(weight.shape)}, needed [R, K] and [N, K]"
        )
    if format not in _WEIGHT_ROUNDERS:
        raise ValueError(f"format is {format!r}, needed one of {', '.join(_WEIGHT_ROUNDERS)}")
    require_finite("the activations", x)
    require_finite("the weights", weight)
    input_amax = np.abs(x).max(axis=0) if channel_amax is None else channel_amax
    weight_amax = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    if channels is not None:
        input_amax, weight_amax = _share(input_amax, channels), _share(weight_amax, channels)
    rows, outputs = spread(x, MAX_ROWS), spread(weight, MAX_OUTPUTS)
    wanted = rows @ outputs.T

    tried: dict[float | None, NDArray[np.float32]] = {None: np.ones(x.shape[1], np.float32)}
    for strength in strengths:
        tried[strength] = migration_scales(input_amax, weight_amax, strength, exact=exact)
    errors: dict[float | None, float] = {}
    for strength, scales in tried.items():
        smoothed, migrated = rows / scales, outputs * scales
        amax = find_input_amax(smoothed, migrated, format, method, percentile)
        rounded = round_input(smoothed, format, amax) @ _WEIGHT_ROUNDERS[format](migrated).T
        errors[strength] = relative_error(wanted, rounded)
    best = min(errors, key=lambda strength: errors[strength])  # a tie: the first, which is none
    amax = find_input_amax(x / tried[best], weight * tried[best], format, method, percentile)
    return Migration(best, tried[best], errors, amax)


def find_input_amax(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    format: ActivationFormat = "int8",
    method: RangeMethod = "minmax",
    percentile: float = 99.99,
) -> float | None:
    """The range of a layer's input, of these very rows; None: each row has its own.

    Args:
        x: float32[R, K], after migration.
        weight: float32[N, K], after migration; only "mse" looks at it.
        format: of the input.
        method: see ranges.py; "mse" by `find_output_amax`.
        percentile: of method "percentile".
    """
    if format == "int8-dynamic":
        return None
    if method == "mse":
        columns = np.square(weight, dtype=np.float64).sum(axis=0)
        return find_output_amax(x, columns, format=_RANGE_FORMATS[format])
    histogram = Histogram.of(x)
    return find_amax(histogram, method, format=_RANGE_FORMATS[format], percentile=percentile)


def round_input(
    x: NDArray[np.float32], format: ActivationFormat, amax: float | None
) -> NDArray[np.float32]:
    """Rows as a quantized layer reads them; `amax` as `find_input_amax` returns it.

    float32[rows, in] -> float32[rows, in].
    """
    if amax is None:
        scales = int8.channel_scales(x)
        return int8.dequantize(int8.quantize(x, scales), scales)
    if format == "fp8":
        scale = fp8.tensor_scale(amax)
        return fp8.dequantize(fp8.quantize(x, scale), scale)
    scale = int8.tensor_scale(amax)
    return int8.dequantize(int8.quantize(x, scale, lowest=-128), scale)


def round_weight(weight: NDArray[np.float32], format: ActivationFormat) -> NDArray[np.float32]:
    """A weight as a quantized layer has it, a scale per row, to nearest.

    float32[out, in] -> float32[out, in].
    """
    return _WEIGHT_ROUNDERS[format](weight)


def relative_error(wanted: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    """||wanted - got|| / ||wanted||; 0 / 0 is 0.

    Args:
        wanted: float[...].
        got: float[...], of the same shape.
    """
    size = float(np.linalg.norm(wanted))
    error = float(np.linalg.norm(wanted - got))
    return error / size if size else float(error != 0)


def spread(rows: NDArray[np.float32], num_rows: int) -> NDArray[np.float32]:
    """At most `num_rows` of the rows, evenly spaced: float32[rows, in] -> float32[kept, in]."""
    if len(rows) <= num_rows:
        return rows
    return rows[np.arange(num_rows) * len(rows) // num_rows]


def _share(amax: NDArray[np.float32], channels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each channel's value replaced by the largest of those that share its number."""
    largest = np.zeros(int(channels.max()) + 1, np.float32)
    np.maximum.at(largest, channels, amax)
    return largest[channels]


def _round_int8(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    scales = int8.channel_scales(weight)
    return int8.dequantize(int8.quantize(weight, scales), scales)


def _round_fp8(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    scales = fp8.channel_scales(weight)
    return fp8.dequantize(fp8.quantize(weight, scales), scales)


_WEIGHT_ROUNDERS: dict[ActivationFormat, RoundInput] = {
    "int8": _round_int8,
    "int8-dynamic": _round_int8,
    "fp8": _round_fp8,
}
_RANGE_FORMATS: dict[ActivationFormat, RangeFormat] = {"int8": "int8", "fp8": "fp8"}
