"""Find the factors that make two bundles comparable after scales have moved between layers.

Migration divides a layer's input by a scale per channel and multiplies its matrix by it (folding.py
says where). The model stays the same, but values between two layers do not: before they are held
against the reference's, they must be multiplied back. Behind a norm the scale can be read off its
weights. Where it went into rows of another layer, it is the ratio of that layer's rows, whose
rounding errors of hundreds of weights cancel out. Either way it counts only if the columns that
read the channel were multiplied by it: anything else is a fault (migrated_scales.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..graph.folding import Fold
from ..graph.layer_nodes import LayerNodes
from .migrated_scales import Ratios, choose_scales, fit_ratios

_VECTOR_NOISE = 1e-3  # relative, of a norm's weight in float16
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Gauge:
    """Reference value / bundle's value of one layer, per channel.

    Attributes:
        input: float32[in].
        output: float32[out].
    """

    input: NDArray[np.float32]
    output: NDArray[np.float32]


class Parameters(Protocol):
    """A model whose weights can be read."""

    def read_vector(self, name: str) -> NDArray[np.float32]:
        """A norm's weight, float32[channels]."""
        ...

    def read_matrix(self, layer: str) -> NDArray[np.float32]:
        """A layer's matrix float32[out, in]."""
        ...


def plain_gauges(layers: Mapping[str, LayerNodes]) -> dict[str, Gauge]:
    """Of two models between which nothing was migrated: ones."""
    return {
        name: Gauge(
            np.ones(layer.linear.in_features, np.float32),
            np.ones(layer.linear.out_features, np.float32),
        )
        for name, layer in layers.items()
    }


def find_gauges(
    layers: Mapping[str, LayerNodes],
    folds: Mapping[str, Fold],
    bundle: Parameters,
    reference: Parameters,
) -> dict[str, Gauge]:
    """Find the factors of every layer.

    Args:
        layers: of the bundle, in the order they run.
        folds: where scales of each one's input may have gone.
        bundle: with migrated weights.
        reference: with the original ones.
    """
    gauges = plain_gauges(layers)
    folded: dict[str, int] = {fold.rows[0]: fold.rows[1] for fold in folds.values() if fold.rows}
    for name in layers:
        fold = folds.get(name)
        if fold is None:
            continue
        producer = _look_at_producer(fold, gauges, bundle, reference)
        if producer.is_one.all():
            continue
        # Rows behind this one may hold a scale that a later layer has moved there
        consumer = _look_at_consumer(name, fold, folded.get(name), bundle, reference)
        scales = choose_scales(producer, consumer)
        if fold.rows is not None:
            source, first = fold.rows
            gauges[source].output[first : first + fold.num_channels] = scales
        gauges[name].input[:] = scales[fold.channels]
    return gauges


def _look_at_producer(
    fold: Fold, gauges: Mapping[str, Gauge], bundle: Parameters, reference: Parameters
) -> Ratios:
    """What the norm, or the rows, that make a layer's input say."""
    if fold.rows is None:
        weight = fold.vectors[0]
        ours = bundle.read_vector(weight).astype(np.float64)
        theirs = reference.read_vector(weight).astype(np.float64)
        check_shapes(weight, ours, theirs)
        found = fit_ratios(ours * theirs, theirs**2, ours**2, 1)
        return Ratios(found.values, np.full(len(ours), _VECTOR_NOISE), found.is_known)
    source, first = fold.rows
    rows = slice(first, first + fold.num_channels)
    ours, theirs = bundle.read_matrix(source), reference.read_matrix(source)
    check_shapes(source, ours, theirs)
    ours, theirs = ours[rows] / gauges[source].input, theirs[rows]
    product, left, right = (
        np.einsum("ij,ij->i", a, b, dtype=np.float64)
        for a, b in ((ours, theirs), (theirs, theirs), (ours, ours))
    )
    return fit_ratios(product, left, right, ours.shape[1])


def _look_at_consumer(
    name: str, fold: Fold, num_rows: int | None, bundle: Parameters, reference: Parameters
) -> Ratios:
    """What the columns of a layer say; of its rows the first ones, None: all."""
    ours, theirs = bundle.read_matrix(name), reference.read_matrix(name)
    check_shapes(name, ours, theirs)
    ours, theirs = ours[:num_rows], theirs[:num_rows]
    sums = np.zeros((3, fold.num_channels))
    for start in range(0, len(ours), ROWS_AT_ONCE):
        part, needed = ours[start : start + ROWS_AT_ONCE], theirs[start : start + ROWS_AT_ONCE]
        for total, (a, b) in zip(
            sums, ((part, needed), (part, part), (needed, needed)), strict=True
        ):
            np.add.at(total, fold.channels, np.einsum("ij,ij->j", a, b, dtype=np.float64))
    count = len(ours) * len(fold.channels) // fold.num_channels
    return fit_ratios(sums[0], sums[1], sums[2], count)


def check_shapes(name: str, ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> None:
    """Refuse two models, before numpy speaks of broadcasting.

    Args:
        name: of the parameter, for the message.
        ours: float[...], of any shape.
        theirs: float[...], of the same.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{name} is {list(ours.shape)}, the reference's {list(theirs.shape)}: these are two "
            "different models"
        )
