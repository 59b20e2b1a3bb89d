"""Find the linear layers of a float graph, by the names of the checkpoint's."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...runtime.bundle.manifest import Manifest
from ...runtime.errors import BundleError
from ...runtime.files.regular_file import open_regular
from .files import locate
from .joined_names import AS_STORED
from .stages import name_stage

WEIGHT_SUFFIX = ".weight"
# The patch embedding has the raw levels' normalization folded in and is left as it is.
_NOT_LINEAR = "patch_embed"


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a float graph: y = x W^T + b, one Gemm node.

    Attributes:
        name: of its checkpoint layers: "visual.blocks.0.attn.qkv",
            "model.layers.0.self_attn.q_proj+k_proj+v_proj".
        stage: where it runs, see stages.py.
        node: name of the Gemm node; its prefix is kept by what replaces it.
        input, output: names of values; the output keeps its name in a quantized graph.
        weight: initializer [out, in].
        bias: initializer [out], None where there is none.
    """

    name: str
    stage: str
    node: str
    input: str
    output: str
    weight: str
    bias: str | None
    out_features: int
    in_features: int

    @property
    def prefix(self) -> str:
        """What names of nodes and values of this layer start with."""
        return self.node.rpartition("/")[0]


def list_linears(graph: onnx.GraphProto, carried: Container[str] = ()) -> tuple[Linear, ...]:
    """The float linear layers of a graph in the order they run.

    Args:
        graph: of a bundle.
        carried: layers that keep what the checkpoint had packed; they are passed over.

    Raises:
        BundleError: the graph is quantized already.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    makers = {value: node for node in graph.node for value in node.output}
    found = []
    for node in graph.node:
        if carried and _is_carried(node, makers, carried):
            continue
        if node.op_type in ("MatMulNBits", "DequantizeLinear"):
            raise BundleError(
                f"{node.name}: the bundle is quantized already; quantize a float one "
                "(vlmedge export --weights fp32)"
            )
        if node.op_type != "Gemm" or _NOT_LINEAR in node.name:
            continue
        weight = casts.get(node.input[1], node.input[1])
        rows, columns = tensors[weight].dims
        found.append(
            Linear(
                name=weight.removesuffix(WEIGHT_SUFFIX),
                stage=name_stage(node.name),
                node=node.name,
                input=node.input[0],
                output=node.output[0],
                weight=weight,
                bias=node.input[2] if len(node.input) > 2 else None,
                out_features=rows,
                in_features=columns,
            )
        )
    return tuple(found)


def list_carried(manifest: Manifest) -> frozenset[str]:
    """Layers that a bundle has as the checkpoint had them packed."""
    return frozenset(
        entry.name
        for entry in manifest.coverage
        if entry.kind == "linear" and entry.reason == AS_STORED
    )


def _is_carried(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], carried: Container[str]
) -> bool:
    """Whether a node is the product of such a layer, or a DequantizeLinear before it."""
    if node.op_type == "Gemm" and node.input[1] in makers:
        node = makers[node.input[1]]
    if node.op_type == "MatMulNBits":
        return node.input[1].removesuffix(f"{WEIGHT_SUFFIX}.packed") in carried
    if node.op_type == "DequantizeLinear":  # of the weight, or of the input that it multiplies
        maker = makers.get(node.input[0])
        is_input = maker is not None and maker.op_type == "QuantizeLinear"
        return is_input or node.input[0].rpartition(".")[0].removesuffix(WEIGHT_SUFFIX) in carried
    return False


def list_attentions(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of the attention products: "visual.blocks.0.attn.products"."""
    return tuple(
        f"{name_stage(node.name)}.{'attn' if 'visual' in node.name else 'self_attn'}.products"
        for node in graph.node
        if node.op_type in ("MultiHeadAttention", "GroupQueryAttention")
    )


class GraphWeights:
    """The initializers of a graph, read from the bundle one at a time."""

    def __init__(self, folder: Path, model: onnx.ModelProto) -> None:
        self._folder = folder
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def stored_dtype(self, name: str) -> np.dtype[Any]:
        """The type that an initializer has in the file."""
        return onnx.helper.tensor_dtype_to_np_dtype(self._tensors[name].data_type)

    def read(self, name: str) -> NDArray[np.float32]:
        """One initializer as float32[...], in the shape that the graph says.

        Raises:
            BundleError: the data file is shorter than the graph says.
        """
        tensor = self._tensors[name]
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor).astype(np.float32)
        file, offset, length = locate(tensor)
        dtype = self.stored_dtype(name)
        path = self._folder / file
        with open_regular(path) as stream:
            stream.seek(offset)
            data = stream.read(length)
        if len(data) != length:
            raise BundleError(f"{path} ends before {name}: copy or export the bundle again")
        return np.frombuffer(data, dtype).reshape(tensor.dims).astype(np.float32)
