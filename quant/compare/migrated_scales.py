"""Choose between two estimates of a migrated scale, from its producer and from its consumer.

A migration divides what makes a channel by s and multiplies the columns that read it by s. Only
where both stand is it a migration. Rows that were scaled while no column answers are a fault, and
so are columns alone: then the factor that is kept is the one the other side speaks for, so that
the error stays with the layer that has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Standard errors of a least-squares ratio: a fold has thousands of channels
_SIGMAS = 4.0
# Of the squared correlation of a bundle's weights with the reference's. 3 bits still have 0.95;
# under this one is no multiple of the other, whatever the factor.
_LEAST_CORRELATION = 0.5
_FLOAT_NOISE = 1e-5  # of a ratio between sums of float32


@dataclass(frozen=True, slots=True)
class Ratios:
    """Reference value / bundle's value of each channel, as one side shows it.

    Attributes:
        values: float64[C], positive where `is_known`.
        noise: float64[C], relative: how far rounding of the weights may have moved a value.
        is_known: bool[C]; False: the weights of this channel are no multiples of the reference's.
    """

    values: NDArray[np.float64]
    noise: NDArray[np.float64]
    is_known: NDArray[np.bool_]

    @property
    def is_one(self) -> NDArray[np.bool_]:
        """bool[C], where nothing was moved as far as can be seen."""
        return self.is_known & (np.abs(self.values - 1) <= self.noise)


def fit_ratios(
    product: NDArray[np.float64],
    explained: NDArray[np.float64],
    explaining: NDArray[np.float64],
    count: int,
) -> Ratios:
    """Least squares of one set of weights by the other, channel by channel.

    Args:
        product: float64[C], sums of explained * explaining.
        explained: float64[C], sums of squares.
        explaining: float64[C], sums of squares of what is multiplied by the ratio.
        count: weights a channel.
    """
    is_used = (explained > 0) & (explaining > 0)
    safe_explained = np.where(is_used, explained, 1.0)
    safe_explaining = np.where(is_used, explaining, 1.0)
    values = np.where(is_used, product / safe_explaining, 1.0)
    correlation = np.where(is_used, product * np.abs(product), 1.0)
    correlation = correlation / np.where(is_used, safe_explained * safe_explaining, 1.0)
    # Two zeros say nothing against each other; a zero beside weights that are none does
    is_known = (correlation > _LEAST_CORRELATION) & (is_used | (explained == explaining))
    residual = np.clip(1 / np.clip(correlation, _LEAST_CORRELATION, 1.0) - 1, 0, None)
    noise = _SIGMAS * np.sqrt(residual / max(1, count)) + residual + _FLOAT_NOISE
    return Ratios(values, noise, is_known)


def choose_scales(producer: Ratios, consumer: Ratios) -> NDArray[np.float32]:
    """The scale of each channel that both sides speak for, 1 where nothing was migrated.

    Args:
        producer: of the rows (or the norm) that make the channels.
        consumer: of the columns that read them.

    Returns:
        float32[C], reference value / bundle's value of each channel.
    """
    ones = np.ones(len(producer.values))
    both = producer.is_known & consumer.is_known
    first = np.log(np.where(producer.is_known, producer.values, 1.0))
    second = np.log(np.where(consumer.is_known, consumer.values, 1.0))
    noise = producer.noise + consumer.noise
    agree = both & (np.abs(first - second) <= noise)
    # Agreeing on something else than 1: seen on both sides, beyond what rounding can have done
    moved = agree & (np.abs(first) > noise)
    finer = np.where(producer.noise <= consumer.noise, producer.values, consumer.values)
    scales = np.where(moved, finer, ones)
    # Too close to 1 to be told apart channel by channel: all of them together can
    unclear = both & ~moved & (np.abs(first) <= noise) & (np.abs(second) <= 2 * noise)
    if unclear.any():
        weight = 1 / np.square(noise[unclear])
        as_moved = (weight * np.square(second[unclear] - first[unclear])).sum()
        as_left = (weight * np.square(second[unclear])).sum()
        if as_moved < as_left:
            scales = np.where(unclear & ~producer.is_one, finer, scales)
    # One side is at fault. It is the one that is farther from 1 in all: migrations scatter around
    # it, and mostly there is none.
    apart = both & ~agree & ~unclear
    if np.abs(second[apart]).sum() <= np.abs(first[apart]).sum():
        scales = np.where(apart & ~consumer.is_one, consumer.values, scales)
    else:
        scales = np.where(apart & ~producer.is_one, producer.values, scales)
    alone = ~producer.is_known & consumer.is_known & ~consumer.is_one
    scales = np.where(alone, consumer.values, scales)
    if moved.sum() > both.sum() / 2:  # a column that is broken, of a layer that was migrated
        alone = producer.is_known & ~consumer.is_known & ~producer.is_one
        scales = np.where(alone, producer.values, scales)
    return scales.astype(np.float32)
