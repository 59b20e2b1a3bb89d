"""Replace the quantized layers of a float graph, keeping everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .linear_nodes import Placed


@dataclass(frozen=True, slots=True)
class RewrittenGraph:
    """A graph whose new initializers are not in it yet.

    Attributes:
        model: nodes, and the initializers that stay as they are in the float bundle.
        tensors: new initializers by name.
    """

    model: onnx.ModelProto
    tensors: dict[str, NDArray[Any]]


def rewrite(
    model: onnx.ModelProto,
    placed: Mapping[str, Placed],
    replaced: Mapping[str, NDArray[Any]],
) -> RewrittenGraph:
    """Put new nodes in the places of old ones.

    Args:
        model: a float graph; it is left as it is.
        placed: name of a node -> what stands for it.
        replaced: initializer -> new value float32[...] of its shape, stored in the type that it
            had; those that the graph doesn't have are passed over, as two graphs share the weights
            of one model.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, NDArray[Any]] = {}
    for node in model.graph.node:
        if node.name in placed:
            nodes += placed[node.name].nodes
            tensors |= placed[node.name].tensors
        else:
            nodes.append(node)
    nodes = drop_unused(nodes, {value.name for value in graph.output})
    used = {value for node in nodes for value in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    old = [tensor for tensor in graph.initializer if tensor.name in used]
    replaced = {t.name: _as_stored(t, replaced[t.name]) for t in old if t.name in replaced}
    tensors = {**replaced, **tensors}  # a quantized layer's own bias goes first
    kept = [tensor for tensor in old if tensor.name not in tensors]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return RewrittenGraph(changed, {name: t for name, t in tensors.items() if name in used})


def drop_unused(nodes: Sequence[onnx.NodeProto], needed: set[str]) -> list[onnx.NodeProto]:
    """Nodes that some output depends on; a replaced matrix leaves its Cast behind."""
    needed = set(needed)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _as_stored(tensor: onnx.TensorProto, value: NDArray[Any]) -> NDArray[Any]:
    """A new value in the type of the old one: a float16 matrix stays one behind its Cast.

    Raises:
        ValueError: it doesn't fit.
    """
    with np.errstate(over="ignore"):
        stored = value.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if not np.isfinite(stored).all():
        raise ValueError(f"{tensor.name} leaves the range of {stored.dtype} when it is migrated")
    return stored
