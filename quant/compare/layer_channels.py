"""Measure a layer's error by output channel, and name the channel that is farthest off.

A row of a matrix that is wrong, or two that are swapped, disappear in the error of thousands of
rows. Each output channel has its own error; the one to look at is farthest under the others of its
part, in their own spread. Parts are the layers that a joined one is made of: values have other
sizes than queries, so neither hides behind the other.

There are two views of a channel. Its output on real rows knows of biases and of the rounding of
inputs, but where inputs are much alike (attention that looks everywhere, one massive channel)
chance decides how far rounding errors cancel, and channels differ by 20 dB. Its row of the matrix,
weighed by the power of each input channel, has no such luck. Whichever view shows more is kept.

In both, an integer format's error is held against what rounding costs this very row: one large
weight in a block of 4 bits takes the levels from all others, and that is nobody's mistake.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import Manifest
from .gauges import Gauge
from .measures import MAX_SQNR_DB, sqnr_from_norms

ROWS_AT_ONCE = 64  # a row of logits is 150,000 numbers
MATRIX_ROWS_AT_ONCE = 4096
MAD_TO_SIGMA = 1.4826
LEAST_SIGMA_DB = 1.0  # channels of one layer are never more alike than this, by chance
QUIET = 0.1  # least rounding cost of a row, as a share of the median
_INTEGER = re.compile(r"int\d+(?: block (\d+)| static| dynamic)")
QKV = ("q", "k", "v")  # of the ViT, one matrix in the checkpoint as well


@dataclass(frozen=True, slots=True)
class ChannelErrors:
    """What the output channels of one layer say; all in dB of SQNR.

    Attributes:
        parts: of each part of a joined layer, in order; empty if it is not joined.
        worst: "row 7 of up_proj"; "" if no channel has an error.
        worst_db: of that channel.
        gap_db: how much larger its error is than the others', beyond what rounding explains.
        sigma_db: spread of the channels of its part, from the median deviation.
    """

    parts: tuple[float, ...] = ()
    worst: str = ""
    worst_db: float = MAX_SQNR_DB
    gap_db: float = 0.0
    sigma_db: float = 0.0

    @property
    def distance(self) -> float:
        """Of the worst channel from the median, in standard deviations."""
        return self.gap_db / max(self.sigma_db, LEAST_SIGMA_DB)


class ChannelSums:
    """Sums of squares over rows, by output channel."""

    def __init__(self, num_channels: int) -> None:
        """Of no rows yet."""
        self.signal = np.zeros(num_channels)
        self.error = np.zeros(num_channels)

    def add(self, got: NDArray[np.float32], needed: NDArray[np.float32]) -> None:
        """Take in rows of both sides.

        Args:
            got: float32[R, out], the bundle's.
            needed: float32[R, out], the reference's.
        """
        for start in range(0, len(got), ROWS_AT_ONCE):
            theirs = needed[start : start + ROWS_AT_ONCE]
            difference = got[start : start + ROWS_AT_ONCE] - theirs
            self.signal += np.einsum("ij,ij->j", theirs, theirs, dtype=np.float64)
            self.error += np.einsum("ij,ij->j", difference, difference, dtype=np.float64)

    def add_matrix(
        self,
        got: NDArray[np.float32],
        needed: NDArray[np.float32],
        gauge: Gauge,
        power: NDArray[np.float64],
    ) -> None:
        """Take in the matrices of both sides.

        Args:
            got: float32[out, in], the bundle's.
            needed: float32[out, in], the reference's.
            gauge: what makes the bundle's comparable.
            power: float64[in], mean squares of the reference's input.
        """
        for start in range(0, len(got), MATRIX_ROWS_AT_ONCE):
            rows = slice(start, start + MATRIX_ROWS_AT_ONCE)
            theirs = needed[rows]
            difference = got[rows] / gauge.input * gauge.output[rows, None] - theirs
            self.signal[rows] += np.square(theirs) @ power
            self.error[rows] += np.square(difference) @ power

    @property
    def sqnr_db(self) -> float:
        """Of all channels together."""
        return _sqnr(self.signal.sum(), self.error.sum())

    def summarize(
        self, parts: Mapping[str, slice], rounding: NDArray[np.float64] | None
    ) -> ChannelErrors:
        """See ChannelErrors.

        Args:
            parts: as of `split_parts`.
            rounding: float64[out], of `estimate_rounding`; None: the error is held against the
                channel's own power.
        """
        worst = ChannelErrors()
        for name, rows in parts.items():
            signal, error = self.signal[rows], self.error[rows]
            # A channel that hardly ever speaks is measured by its neighbours' power
            values = _decibels(np.maximum(signal, np.median(signal)), error)
            gaps, sigma = _find_gaps(values)
            if rounding is not None:
                # An outlier of what rounding costs explains itself; so does one of the error alone
                # where a calibrated rounding doesn't go by its largest weights
                costs = np.maximum(rounding[rows], QUIET * np.median(rounding[rows]))
                others, spread = _find_gaps(_decibels(costs, error))
                gaps, sigma = np.minimum(gaps, others), max(sigma, spread)
            index = int(np.argmax(gaps))
            place = f"row {index} of {name}" if name else f"row {index}"
            found = ChannelErrors((), place, float(values[index]), float(gaps[index]), sigma)
            worst = max(worst, found, key=lambda one: one.distance)
        own = tuple(
            _sqnr(self.signal[rows].sum(), self.error[rows].sum()) for rows in parts.values()
        )
        return dataclasses.replace(worst, parts=own if len(parts) > 1 else ())


def estimate_rounding(
    matrix: NDArray[np.float32], power: NDArray[np.float64], precision: str
) -> NDArray[np.float64] | None:
    """Error power float64[out] that rounding a matrix costs, but for a factor that all rows share.

    Args:
        matrix: float32[out, in], the reference's.
        power: float64[in], mean squares of its input.
        precision: as coverage names it.

    Returns:
        None where errors go with the weights themselves: float formats.
    """
    if not (match := _INTEGER.fullmatch(precision)):
        return None
    num_rows, num_columns = matrix.shape
    size = min(int(match[1] or num_columns), num_columns)
    costs = np.zeros(num_rows)
    for start in range(0, num_columns, size):
        columns = slice(start, start + size)
        steps = np.maximum(matrix[:, columns].max(axis=1), -matrix[:, columns].min(axis=1))
        costs += np.square(steps.astype(np.float64)) * power[columns].sum()
    return costs


def split_parts(layer: str, num_rows: int, manifest: Manifest) -> dict[str, slice]:
    """The rows of each part of a layer; "" is the one part of a layer that is not joined."""
    names = name_parts(layer)
    if len(names) < 2:
        return {"": slice(0, num_rows)}
    sizes = [num_rows // len(names)] * len(names)
    if not layer.startswith("visual.") and len(names) == len(QKV):
        decoder = manifest.decoder
        cached = decoder.num_kv_heads * decoder.head_dim
        sizes = [num_rows - 2 * cached, cached, cached]
    ends = np.cumsum(sizes)
    return {
        name: slice(int(end) - size, int(end))
        for name, end, size in zip(names, ends, sizes, strict=True)
    }


def name_parts(layer: str) -> tuple[str, ...]:
    """The parts of "…mlp.gate_proj+up_proj": gate_proj, up_proj; a layer not joined has one."""
    last = layer.rpartition(".")[2]
    return QKV if last == "qkv" else tuple(last.split("+"))


def _find_gaps(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """How far each channel is under the median, and the spread of all, in dB."""
    gaps = np.median(values) - values
    return gaps, MAD_TO_SIGMA * float(np.median(np.abs(gaps)))


def _sqnr(signal: float, error: float) -> float:
    return sqnr_from_norms(float(np.sqrt(signal)), float(np.sqrt(error)))


def _decibels(signal: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """10 log10(signal / error), within ±MAX_SQNR_DB; equal values are MAX_SQNR_DB apart."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = 10 * (np.log10(signal) - np.log10(error))
    values = np.where(error == 0, MAX_SQNR_DB, values)
    return np.clip(values, -MAX_SQNR_DB, MAX_SQNR_DB)
