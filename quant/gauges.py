"""Scales that a quantizer has moved between layers -> factors that make two bundles comparable.

Migration divides a layer's input by a scale per channel and multiplies its matrix by it (folding.py
says where). The model stays the same, but values between two layers do not: before they are held
against the reference's, they must be multiplied back. Behind a norm the scale can be read off its
weights. Where it went into rows of another layer, it is the ratio of that layer's rows, whose
rounding errors of hundreds of weights cancel out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .folding import Fold
from .layer_nodes import LayerNodes


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
        """A norm's weight."""
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
    for name in layers:
        fold = folds.get(name)
        if fold is None:
            continue
        if fold.rows is None:
            weight = fold.vectors[0]
            factors = _divide(reference.read_vector(weight), bundle.read_vector(weight))
        else:
            source, first = fold.rows
            rows = slice(first, first + fold.num_channels)
            ours = bundle.read_matrix(source)[rows] / gauges[source].input
            theirs = reference.read_matrix(source)[rows]
            factors = _divide((ours * theirs).sum(axis=1), (ours * ours).sum(axis=1))
            gauges[source].output[rows] = factors
        gauges[name].input[:] = factors[fold.channels]
    return gauges


def _divide(reference: NDArray[np.float32], bundle: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 where the bundle has a 0: a channel that is never used."""
    return np.divide(reference, bundle, out=np.ones_like(reference), where=bundle != 0)
