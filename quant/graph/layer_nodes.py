"""Find the nodes that stand for each linear layer, in a graph of any precision.

Nodes of a layer share the prefix of their names, whatever its format: `/visual/blocks.0/attn/qkv/`
and then MatMul, MatMulNBits, or a chain of QuantizeLinear to Add. A layer has one input and one
output among all values that are no constants, so it can be cut out and run by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ...runtime.errors import BundleError
from ..rounding.weight_only import unpack_rows, unpack_shifted
from .linears import WEIGHT_SUFFIX, GraphWeights, Linear
from .stages import StageOptions, name_stage, open_session

# Of the node that reads a layer's matrix: what follows the layer's prefix
_READER = re.compile(r"(.+?)/(?:MatMul|MatMulNBits|Cast|weight/DequantizeLinear)")


@dataclass(frozen=True, slots=True)
class LayerNodes:
    """One linear layer in a graph.

    Attributes:
        linear: its names; of the matrix and the bias those of the float graph.
        nodes: indices into the graph's nodes.
        reader: index of the one that reads the matrix.
        matrix: initializer that holds it, or its codes.
    """

    linear: Linear
    nodes: tuple[int, ...]
    reader: int
    matrix: str


def find_layers(graph: onnx.GraphProto, names: Iterable[str]) -> dict[str, LayerNodes]:
    """Find layers by name, in the order they run; a name that the graph lacks is left out.

    Raises:
        BundleError: nodes of a layer with several inputs or outputs.
    """
    wanted = {f"{name}{WEIGHT_SUFFIX}": name for name in names}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    members: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for prefix in _list_prefixes(node.name):
            members.setdefault(prefix, []).append(index)
    readers: dict[str, tuple[int, str, str]] = {}
    for index, node in enumerate(graph.node):
        match = _READER.fullmatch(node.name)
        for value in node.input if match else ():
            name = wanted.get(value) or wanted.get(value.rpartition(".")[0])
            if match and name and value in tensors and name not in readers:
                readers[name] = index, value, match[1]
    edges = _Edges(graph)
    return {
        name: _cut(graph, name, members[prefix], reader, tensors[matrix], edges)
        for name, (reader, matrix, prefix) in readers.items()
    }


def open_layer(
    model: onnx.ModelProto,
    folder: Path,
    layer: LayerNodes,
    *,
    num_threads: int = 0,
    keep_qdq: bool = False,
) -> ort.InferenceSession:
    """A session of one layer alone: float32[rows, in] -> float32[rows, out].

    Raises:
        BundleError: onnxruntime refused it.
    """
    linear = layer.linear
    x = onnx.helper.make_tensor_value_info(
        linear.input, onnx.TensorProto.FLOAT, [None, linear.in_features]
    )
    part = _cut_out(model, layer.nodes, [x], linear.output)
    return open_session(part, StageOptions(folder, num_threads, keep_qdq=keep_qdq))


def read_matrix(model: onnx.ModelProto, folder: Path, layer: LayerNodes) -> NDArray[np.float32]:
    """The matrix float32[out, in] that a layer stands for, as its codes say it.

    Raises:
        BundleError: the data file is damaged.
    """
    weights, node = GraphWeights(folder, model), model.graph.node[layer.reader]
    if node.op_type == "Gemm":
        return weights.read(layer.matrix)
    if node.op_type == "MatMulNBits":
        packed = weights.read(layer.matrix).astype(np.uint8)
        scales = weights.read(node.input[2]).reshape(packed.shape[:2])
        bits, num_inputs = _attributes(node)["bits"], layer.linear.in_features
        if len(node.input) > 3 and node.input[3]:
            zero_points = weights.read(node.input[3]).astype(np.uint8)
            rows = unpack_shifted(packed, scales, zero_points, bits, num_inputs)
        else:
            rows = unpack_rows(packed, scales, bits, num_inputs)
        return _unsort_inputs(model, weights, node, rows)
    part = _cut_out(model, [layer.reader], [], node.output[0])
    session = open_session(part, StageOptions(folder))
    return np.asarray(session.run(None, {})[0])


def _unsort_inputs(
    model: onnx.ModelProto,
    weights: GraphWeights,
    node: onnx.NodeProto,
    rows: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Columns as the layer's input has them, where a Gather before the product sorts it."""
    for maker in model.graph.node:
        if maker.op_type == "Gather" and maker.output[0] == node.input[0]:
            unsorted = np.empty_like(rows)
            unsorted[:, weights.read(maker.input[1]).astype(np.int64)] = rows
            return unsorted
    return rows


class _Edges:
    """Who makes and who uses each value of a graph, by index of the node."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.users: dict[str, list[int]] = {}
        for index, node in enumerate(graph.node):
            for value in node.input:
                self.users.setdefault(value, []).append(index)
        self.constants = {tensor.name for tensor in graph.initializer} | {""}
        self.final = {value.name for value in graph.output}


def _cut(
    graph: onnx.GraphProto,
    name: str,
    nodes: list[int],
    reader: int,
    matrix: onnx.TensorProto,
    edges: _Edges,
) -> LayerNodes:
    mine, made = set(nodes), {value for i in nodes for value in graph.node[i].output}
    used = {value for i in nodes for value in graph.node[i].input}
    inputs = used - made - edges.constants
    outputs = [v for v in made if v in edges.final or not mine.issuperset(edges.users.get(v, ()))]
    if len(inputs) != 1 or len(outputs) != 1:
        raise BundleError(
            f"layer {name} has {len(inputs)} inputs and {len(outputs)} outputs, needed one of each"
        )
    node = graph.node[reader]
    if node.op_type == "MatMulNBits":
        attributes = _attributes(node)
        out_features, in_features = attributes["N"], attributes["K"]
    else:
        out_features, in_features = matrix.dims
    linear = Linear(
        name=name,
        stage=name_stage(node.name),
        node=node.name,
        input=inputs.pop(),
        output=outputs[0],
        weight=f"{name}{WEIGHT_SUFFIX}",
        bias=None,
        out_features=out_features,
        in_features=in_features,
    )
    return LayerNodes(linear, tuple(nodes), reader, matrix.name)


def _cut_out(
    model: onnx.ModelProto,
    indices: Iterable[int],
    inputs: list[onnx.ValueInfoProto],
    output: str,
) -> onnx.ModelProto:
    """Some nodes with their constants as a model of one output."""
    nodes = [model.graph.node[i] for i in indices]
    used = {value for node in nodes for value in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    outputs = [onnx.ValueInfoProto(name=output)]
    graph = onnx.helper.make_graph(nodes, model.graph.name, inputs, outputs, tensors)
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )


def _list_prefixes(node_name: str) -> list[str]:
    """/a/b/c -> /a, /a/b."""
    parts = node_name.split("/")
    return ["/".join(parts[:length]) for length in range(2, len(parts))]


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}
