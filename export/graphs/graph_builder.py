"""Build one graph of an export with onnx-ir: inputs, outputs, nodes, and weights by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ...quant.rounding.weight_only import CONTRIB
from ...runtime import __version__
from ..checkpoint.open import Checkpoint
from ..checkpoint.weights.tensor_source import TensorSource
from .data_file import DataFile
from .weights import Weight, float_weight

OPSET = 23  # the first with RotaryEmbedding and RMSNormalization
IR_VERSION = 11

_IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "uint8": ir.DataType.UINT8,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}


class GraphBuilder:
    """Nodes, inputs and outputs of one graph while it is built.

    Names say where: `/model/layers.0/attn/o_proj/MatMul`. Weights are references into the data file
    that is written later, which onnx-ir's lazy tensors hold. `lowering/emitter.py` has a writer of
    its own: it copies most of a graph node by node, for which onnx's protos are the cheaper form,
    and it must know the type of every value, which nothing asks of this one.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, data: DataFile) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.precision: dict[str, str] = {}  # checkpoint tensor -> how it is stored
        self._data = data
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input."""
        value = ir.Value(
            name=name, type=ir.TensorType(_IR_DTYPES[dtype]), shape=ir.Shape(list(shape))
        )
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a value a graph output."""
        value.name = name
        value.type = ir.TensorType(_IR_DTYPES[dtype])
        value.shape = ir.Shape(list(shape))
        self._outputs.append(value)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Add a node with one output."""
        return self.ops(op_type, inputs, name, attributes, domain, num_outputs=1)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        *,
        num_outputs: int,
        unused: Sequence[int] = (),
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs; those in `unused` are left out by an empty name."""
        outputs = [
            ir.Value(name="" if i in unused else f"{name}/output_{i}") for i in range(num_outputs)
        ]
        attrs = [_attribute(key, value) for key, value in (attributes or {}).items()]
        node = ir.Node(domain, op_type, inputs, attrs, outputs=outputs, name=name)
        self._nodes.append(node)
        return node.outputs

    def constant(self, name: str, array: NDArray) -> ir.Value:
        """A small constant in the graph file; asked for again, it is the same one.

        Args:
            name: of the initializer.
            array: any[...], its values.
        """
        if name not in self._initializers:
            self._initialize(ir.tensor(array, name=name))
        return self._initializers[name]

    def weight(self, weight: Weight) -> tuple[ir.Value, ...]:
        """The stored tensors of a weight as initializers."""
        return tuple(self._initialize(tensor) for tensor in self._data.add(weight))

    def vector(self, *names: str) -> ir.Value:
        """A norm's weight or a bias, several of them one after another, as float32."""
        sources = tuple(self.source(name) for name in names)
        for name in names:
            self.precision[name] = "float32"
        return self.weight(float_weight(join_names(names), sources, "fp32"))[0]

    def source(self, name: str) -> TensorSource:
        """A checkpoint tensor."""
        return self.checkpoint.tensors[name]

    def build(self) -> ir.Model:
        """The finished model."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=tuple(self._initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1},
            name=self.name,
        )
        return ir.Model(
            graph,
            ir_version=IR_VERSION,
            producer_name="vlmedge",
            producer_version=__version__,
        )

    def _initialize(self, tensor: ir.TensorProtocol) -> ir.Value:
        name = str(tensor.name)
        if name not in self._initializers:
            self._initializers[name] = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
        return self._initializers[name]


def join_names(names: Sequence[str]) -> str:
    """One name for several tensors: 'a.q_proj.bias', 'a.k_proj.bias' -> 'a.q_proj+k_proj.bias'."""
    if len(names) == 1:
        return names[0]
    prefix, _, kind = names[0].rpartition(".")
    parent = prefix.rpartition(".")[0]
    return f"{parent}.{'+'.join(name.split('.')[-2] for name in names)}.{kind}"


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, bool):
        raise TypeError(f"attribute {name} is a bool: write 0 or 1")
    if isinstance(value, ir.DataType):
        return ir.AttrInt64(name, int(value))
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    return ir.AttrInt64s(name, list(value))
