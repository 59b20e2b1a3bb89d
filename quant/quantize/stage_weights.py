"""Matrices, biases and norms of one stage's layers while scales are moved between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from ..graph.folding import Fold
from ..graph.linears import GraphWeights
from ..rounding.int8 import require_finite
from .plan import LayerPlan


class StageWeights:
    """Read from the float bundle when first asked for.

    Attributes:
        scales: layer -> what its input channels are divided by, float32[K]; None: by nothing.
    """

    def __init__(self, weights: GraphWeights, plans: Mapping[str, LayerPlan]) -> None:
        self.scales: dict[str, NDArray[np.float32] | None] = {}
        self._weights = weights
        self._plans = plans
        self._matrices: dict[str, NDArray[np.float32]] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._changed: set[str] = set()

    def matrix(self, name: str) -> NDArray[np.float32]:
        """float32[N, K] of a layer, as migrated so far."""
        if name not in self._matrices:
            matrix = self._weights.read(self._plans[name].linear.weight)
            require_finite("the weights", matrix)
            self._matrices[name] = matrix
        return self._matrices[name]

    def bias(self, name: str) -> NDArray[np.float32] | None:
        """float32[N] of a layer, as migrated so far."""
        bias = self._plans[name].linear.bias
        return None if bias is None else self._vector(bias)

    def fold(self, name: str, fold: Fold, scales: NDArray[np.float32]) -> None:
        """Multiply a layer's columns, divide what makes its input.

        Args:
            name: of the layer.
            fold: what makes its input.
            scales: float32[in].

        Raises:
            ValueError: channels that are copies of one have scales that differ.
        """
        shared = np.ones(fold.num_channels, np.float32)
        shared[fold.channels] = scales
        if not np.array_equal(shared[fold.channels], scales):
            raise ValueError("its scales differ where its channels are copies of one")
        self._matrices[name] = self.matrix(name) * scales
        self._changed.add(name)
        for vector in fold.vectors:
            self._vectors[vector] = self._vector(vector) / shared
        if fold.rows is not None:
            source, first = fold.rows
            rows = slice(first, first + len(shared))
            matrix = self.matrix(source).copy()
            matrix[rows] /= shared[:, None]
            self._matrices[source] = matrix
            self._changed.add(source)
            if (bias := self._plans[source].linear.bias) is not None:
                vector = self._vector(bias).copy()
                vector[rows] /= shared
                self._vectors[bias] = vector

    def list_replaced(self, quantized: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """Initializers that the graph must get anew: quantized layers bring their own matrix.

        Returns:
            Name -> float32[out, in] of a matrix, float32[channels] of a norm or bias.
        """
        replaced = dict(self._vectors)
        for name in self._changed - set(quantized):
            replaced[self._plans[name].linear.weight] = self._matrices[name]
        return replaced

    def _vector(self, name: str) -> NDArray[np.float32]:
        if name not in self._vectors:
            return self._weights.read(name)
        return self._vectors[name]
