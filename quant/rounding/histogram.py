"""Gather activations batch by batch into a histogram of magnitudes and numbers per channel.

The histogram has 2048 equal bins over [0, 2^exponent), the smallest power of two above the largest
magnitude seen. When the range grows, 2, 4, 8 ... neighbouring bins become one: all edges of the
wider range are edges of the narrower one, so counts stay exact, and batches in any order, or
merged from several machines, give the histogram of all values at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.strict_json import check_keys, read_number, read_vector, shorten, write_vector
from .int8 import require_finite

NUM_BINS = 2048
# Of a histogram of zeros; below it float32 bin widths would lose bits.
MIN_EXPONENT = -100
BLOCK_ELEMENTS = 1 << 20  # counted at once: an update holds a few MiB
BINS_A_LINE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Magnitudes of the values seen so far.

    Attributes:
        exponent: bins cover [0, 2^exponent).
        counts: int64[2048].
        amax: largest magnitude, exact.
        sum_squares: of all values, in float64.
    """

    exponent: int
    counts: NDArray[np.int64]
    amax: float
    sum_squares: float

    @classmethod
    def empty(cls) -> Histogram:
        """Of no values."""
        return cls(MIN_EXPONENT, np.zeros(NUM_BINS, np.int64), 0.0, 0.0)

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Histogram:
        """The histogram of an array of any shape.

        Args:
            values: float[...].

        Raises:
            ValueError: a value is NaN or infinite.
        """
        values = np.ascontiguousarray(values, np.float32).reshape(-1)
        amax = require_finite("the activations", values)
        exponent = _exponent(amax)
        counts = np.zeros(NUM_BINS, np.int64)
        sum_squares = 0.0
        bins_a_unit = np.float32(2.0 ** (11 - exponent))  # 2048 = 2^11; the product is exact
        for start in range(0, len(values), BLOCK_ELEMENTS):
            block = np.abs(values[start : start + BLOCK_ELEMENTS])
            sum_squares += float(np.square(block, dtype=np.float64).sum())
            block *= bins_a_unit
            counts += np.bincount(block.astype(np.intp), minlength=NUM_BINS)
        return cls(exponent, counts, amax, sum_squares)

    @property
    def count(self) -> int:
        """Values seen, zeros too."""
        return int(self.counts.sum())

    @property
    def edges(self) -> NDArray[np.float64]:
        """float64[2049], the bins' bounds."""
        return np.arange(NUM_BINS + 1, dtype=np.float64) * 2.0 ** (self.exponent - 11)

    def merge(self, other: Histogram) -> Histogram:
        """Of the values of both."""
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            exponent,
            _widen(self.counts, exponent - self.exponent)
            + _widen(other.counts, exponent - other.exponent),
            max(self.amax, other.amax),
            self.sum_squares + other.sum_squares,
        )

    def to_json(self) -> dict[str, Any]:
        """What `json.dump` takes: 64 bins a line, without the zeros that end a line."""
        lines = [
            " ".join(map(str, np.trim_zeros(line, "b")))
            for line in self.counts.reshape(-1, BINS_A_LINE)
        ]
        return {
            "exponent": self.exponent,
            "amax": self.amax,
            "sum_squares": self.sum_squares,
            "counts": lines,
        }

    @classmethod
    def from_json(cls, data: Any) -> Histogram:
        """Read what `to_json` wrote.

        Raises:
            ValueError: names the key that is missing, unknown or wrong.
        """
        check_keys(data, ("exponent", "amax", "sum_squares", "counts"))
        exponent, amax = data["exponent"], read_number(data, "amax", np.float32)
        if type(exponent) is not int or exponent != _exponent(amax):
            raise ValueError(f"exponent is {exponent!r}, amax {amax} needs {_exponent(amax)}")
        counts = _read_counts(data["counts"])
        last = int(amax * 2.0 ** (11 - exponent))
        if counts[last + 1 :].any() or (amax > 0 and not counts[last]):
            raise ValueError(f"counts and amax disagree: {amax} is in bin {last}")
        return cls(exponent, counts, amax, read_number(data, "sum_squares"))


class ActivationStats:
    """What calibration keeps of one tensor [..., K] while batches pass by.

    Attributes:
        histogram: of all magnitudes.
        channel_amax: float32[K].
        channel_sum_squares: float64[K].
        count: rows seen.
    """

    __slots__ = ("channel_amax", "channel_sum_squares", "count", "histogram")

    def __init__(self, num_channels: int) -> None:
        """Of no rows."""
        self.histogram = Histogram.empty()
        self.channel_amax = np.zeros(num_channels, np.float32)
        self.channel_sum_squares = np.zeros(num_channels, np.float64)
        self.count = 0

    @property
    def channel_mean_square(self) -> NDArray[np.float64]:
        """float64[K], zeros if no row was seen."""
        return self.channel_sum_squares / max(1, self.count)

    def update(self, x: NDArray[np.floating]) -> None:
        """Add rows.

        Args:
            x: float[..., K].

        Raises:
            ValueError: another K, or a value that is NaN or infinite; nothing was added then.
        """
        if not x.ndim or x.shape[-1] != len(self.channel_amax):
            raise ValueError(
                f"activations are {list(x.shape)}, needed [..., {len(self.channel_amax)}]"
            )
        rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
        histogram = Histogram.of(rows)
        block = max(1, BLOCK_ELEMENTS // max(1, rows.shape[1]))
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            np.maximum(self.channel_amax, np.abs(part).max(axis=0), out=self.channel_amax)
            self.channel_sum_squares += np.square(part, dtype=np.float64).sum(axis=0)
        self.histogram = self.histogram.merge(histogram)
        self.count += len(rows)

    def merge(self, other: ActivationStats) -> ActivationStats:
        """Of the rows of both.

        Raises:
            ValueError: they count different channels.
        """
        if len(self.channel_amax) != len(other.channel_amax):
            sizes = len(self.channel_amax), len(other.channel_amax)
            raise ValueError(f"statistics of {sizes[0]} and of {sizes[1]} channels don't merge")
        merged = ActivationStats(len(self.channel_amax))
        merged.histogram = self.histogram.merge(other.histogram)
        merged.channel_amax = np.maximum(self.channel_amax, other.channel_amax)
        merged.channel_sum_squares = self.channel_sum_squares + other.channel_sum_squares
        merged.count = self.count + other.count
        return merged

    def to_dict(self) -> dict[str, Any]:
        """What `json.dump` takes; numbers are the shortest that read back as the same bits."""
        return {
            "rows": self.count,
            "channels": len(self.channel_amax),
            "channel_amax": write_vector(self.channel_amax),
            "channel_sum_squares": write_vector(self.channel_sum_squares),
            "histogram": self.histogram.to_json(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> ActivationStats:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: names the key that is missing, unknown or wrong.
        """
        check_keys(data, ("rows", "channels", "channel_amax", "channel_sum_squares", "histogram"))
        for key in ("rows", "channels"):
            if type(data[key]) is not int or data[key] < 0:
                raise ValueError(f"{key} is {data[key]!r}, needed a count")
        stats = cls(0)
        stats.count = data["rows"]
        stats.channel_amax = read_vector(data, "channel_amax", data["channels"], np.float32)
        stats.channel_sum_squares = read_vector(
            data, "channel_sum_squares", data["channels"], np.float64
        )
        try:
            stats.histogram = Histogram.from_json(data["histogram"])
        except ValueError as error:
            raise ValueError(f"histogram: {error}") from error
        if stats.histogram.count != data["rows"] * data["channels"]:
            raise ValueError(
                f"histogram: counts sum to {stats.histogram.count}, needed rows x channels = "
                f"{data['rows'] * data['channels']}"
            )
        amax = float(stats.channel_amax.max(initial=0))
        if stats.histogram.amax != amax:
            raise ValueError(f"channel_amax reaches {amax}, the histogram {stats.histogram.amax}")
        return stats


def _exponent(amax: float) -> int:
    """Of the smallest power of two above `amax`."""
    return max(MIN_EXPONENT, math.frexp(amax)[1]) if amax else MIN_EXPONENT


def _widen(counts: NDArray[np.int64], powers: int) -> NDArray[np.int64]:
    """Counts over a range 2^powers times as wide."""
    if not powers:
        return counts
    factor = min(1 << powers, NUM_BINS)
    wide = np.zeros(NUM_BINS, np.int64)
    wide[: NUM_BINS // factor] = counts.reshape(-1, factor).sum(axis=1)
    return wide


def _read_counts(lines: Any) -> NDArray[np.int64]:
    num_lines = NUM_BINS // BINS_A_LINE
    if not isinstance(lines, list) or len(lines) != num_lines:
        raise ValueError(f"counts is {shorten(lines)}, needed {num_lines} lines")
    counts = np.zeros((num_lines, BINS_A_LINE), np.int64)
    for number, line in enumerate(lines):
        words = line.split() if isinstance(line, str) else ["-"]
        # 15 digits: more values than that are never counted, and 2048 of them don't overflow
        if len(words) > BINS_A_LINE or not all(
            w.isascii() and w.isdigit() and len(w) < 16 for w in words
        ):
            raise ValueError(
                f"counts: line {number + 1} is {shorten(line)}, needed at most {BINS_A_LINE} counts"
            )
        counts[number, : len(words)] = [int(word) for word in words]
    return counts.reshape(-1)
