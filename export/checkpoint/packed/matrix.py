"""A linear layer's weight as a checkpoint's quantizer stored it: codes, scales, zero points.

    W[n, k] = (codes[n, k] - zero_points[n, g]) * scales[n, g],   g = groups[k]

The codes are what the checkpoint holds, brought into the hub's [out, in] order; nothing is rounded
a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..weights.tensor_source import TensorSource

CodeKind = Literal["integer", "float8_e4m3fn"]
# How the layer's input is rounded when it runs: not at all, by a scale for each token found then,
# or by one scale from calibration
Activations = Literal["float", "dynamic", "static"]


@dataclass(frozen=True, slots=True)
class PackedValues:
    """The numbers of one layer, read.

    Attributes:
        codes: uint8[N, K]: unsigned integers of `bits` bits, or the bits of E4M3.
        scales: float32[N, groups], exactly as stored (float16 and bfloat16 fit).
        zero_points: uint8[N, groups] of integers (signed codes come shifted by half their range,
            with a zero point of 2^(bits - 1)); None for E4M3.
        input_scale: of static activations; None otherwise.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    input_scale: float | None = None


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """What is known of a packed layer before its numbers are read.

    Attributes:
        layer: "model.layers.0.self_attn.q_proj".
        method: that packed it, as the checkpoint says: "awq", "gptq", "compressed-tensors".
        shape: (N, K) = (out, in) features.
        bits: 4 or 8.
        group_size: inputs that share a scale; K where a row has one scale.
        symmetric: every zero point is known to be 2^(bits - 1).
        order: int32[K], the group of each input of act-order; None: k // group_size.
        activations: see `Activations`.
        sources: the tensors it is read from, bias apart.
        read: reads them.
    """

    layer: str
    method: str
    kind: CodeKind
    shape: tuple[int, int]
    bits: int
    group_size: int
    symmetric: bool
    order: NDArray[np.int32] | None
    activations: Activations
    sources: tuple[TensorSource, ...]
    read: Callable[[], PackedValues]


@dataclass(frozen=True, slots=True)
class PackedSource(TensorSource):
    """A packed matrix in the place of a float tensor: read, it is the weights that it means.

    Attributes:
        matrix: that it stands for.
    """

    matrix: PackedMatrix = field(kw_only=True)

    @classmethod
    def of(cls, matrix: PackedMatrix) -> PackedSource:
        """The weights of a layer; `path` is that of its first tensor, for messages."""
        first, size = matrix.sources[0], 4 * math.prod(matrix.shape)
        name = f"{matrix.layer}.weight"
        return cls(name, "F32", matrix.shape, first.path, first.offset, size, matrix=matrix)


def dequantize(matrix: PackedMatrix, values: PackedValues) -> NDArray[Any]:
    """float32[N, K], the weights these numbers mean."""
    num_inputs = matrix.shape[1]
    groups = np.arange(num_inputs) // matrix.group_size if matrix.order is None else matrix.order
    if values.zero_points is None:
        import ml_dtypes

        levels = values.codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    else:
        zero_points = values.zero_points.astype(np.int16)[:, groups]
        levels = (values.codes.astype(np.int16) - zero_points).astype(np.float32)
    return levels * values.scales[:, groups]
