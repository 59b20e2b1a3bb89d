"""Find where the scale of a linear layer's input channels can be folded into its producer.

y = W x = (W diag(s)) (x / s). The division disappears into the norm before the layer, or into the
rows of the linear layer before it, so that a graph with migrated scales has no node more. What
stands between must be linear in each channel: attention is in its values, a gated product in its
ungated factor, a GELU is not.

| layer | its input's channels come from |
|---|---|
| qkv, fc1, q+k+v, gate+up | the norm before it |
| merger.mlp.0 | the norm before it, its channels four times side by side |
| proj, o_proj | the values' rows of qkv; several query heads share one head of values |
| down_proj | the rows of up_proj |
| fc2, merger.mlp.2 | a GELU: nothing to fold into |
| lm_head | the last norm |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from .linears import Linear

_NORMS = (
    "LayerNormalization",
    "RMSNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)
_FIRST_PARAMETER = {"LayerNormalization": 1, "RMSNormalization": 1}  # of the Skip ones: 2
_PASS_THROUGH = ("Reshape", "GatherND")


@dataclass(frozen=True, slots=True)
class Fold:
    """The divisions that undo a scale of one layer's input.

    Attributes:
        channels: int64[K], which of the C folded channels each input channel is.
        vectors: initializers [C] to divide (a norm's weight and bias).
        rows: (linear layer, first row): rows first..first + C of its weight and bias to divide.
    """

    channels: NDArray[np.int64]
    vectors: tuple[str, ...] = ()
    rows: tuple[str, int] | None = None

    @property
    def num_channels(self) -> int:
        """C."""
        return int(self.channels.max()) + 1

    def reduce(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[K] -> float32[C]: the largest of the input channels that are one."""
        out = np.zeros(self.num_channels, np.float32)
        np.maximum.at(out, self.channels, values)
        return out


def find_folds(
    graph: onnx.GraphProto, linears: Sequence[Linear], num_heads: int, num_kv_heads: int
) -> dict[str, Fold]:
    """Where the input of each linear layer can be scaled; layers without a place are left out.

    Args:
        graph: a float graph.
        linears: of `list_linears`.
        num_heads: query heads of its attention.
        num_kv_heads: key and value heads.
    """
    makers = {value: node for node in graph.node for value in node.output if value}
    num_uses: dict[str, int] = {}
    for node in graph.node:
        for value in node.input:
            num_uses[value] = num_uses.get(value, 0) + 1
    by_output = {linear.output: linear for linear in linears}
    folds = {}
    for linear in linears:
        value, node = linear.input, makers.get(linear.input)
        while node is not None and node.op_type in _PASS_THROUGH and num_uses[value] == 1:
            value = node.input[0]
            node = makers.get(value)
        if node is None or num_uses[value] != 1:
            continue
        if fold := _find_fold(node, linear, makers, by_output, num_heads, num_kv_heads, graph):
            folds[linear.name] = fold
    return folds


def _find_fold(
    node: onnx.NodeProto,
    linear: Linear,
    makers: Mapping[str, onnx.NodeProto],
    by_output: Mapping[str, Linear],
    num_heads: int,
    num_kv_heads: int,
    graph: onnx.GraphProto,
) -> Fold | None:
    size = linear.in_features
    if node.op_type in _NORMS:
        first = _FIRST_PARAMETER.get(node.op_type, 2)
        names = tuple(name for name in node.input[first : first + 2] if name)
        shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
        width = shapes[names[0]][0]
        return Fold(np.arange(size) % width, vectors=names)
    if node.op_type in ("MultiHeadAttention", "GroupQueryAttention"):
        source = _find_source(node.input[2], makers, by_output)
        kv_heads = num_heads if node.op_type == "MultiHeadAttention" else num_kv_heads
        head_size = size // num_heads
        if source is None:
            return None
        head, offset = np.divmod(np.arange(size), head_size)
        channels = head // (num_heads // kv_heads) * head_size + offset
        return Fold(channels, rows=(source.name, source.out_features - kv_heads * head_size))
    if node.op_type == "Mul":  # SiLU(gate) * up: the factor that comes straight from the matrix
        source = _find_source(node.input[1], makers, by_output)
        if source is not None:
            return Fold(np.arange(size), rows=(source.name, source.out_features - size))
    return None


def _find_source(
    value: str, makers: Mapping[str, onnx.NodeProto], by_output: Mapping[str, Linear]
) -> Linear | None:
    """The linear layer whose last rows are this value, through a Split (its last part)."""
    node = makers.get(value)
    if node is None or node.op_type != "Split" or node.output[-1] != value:
        return None
    value = node.input[0]
    while value not in by_output and (node := makers.get(value)) and node.op_type == "Reshape":
        value = node.input[0]
    return by_output.get(value)
