"""Build the graph that is written while another is read: nodes, constants, types of values.

TensorRT takes types as they stand: a product of float16 and float32 is an error. So every value's
type is known here, and `cast` puts the explicit Cast where one is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

Compute = str  # "float32", "float16", "bfloat16"

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
TYPE_NAMES = {int(value): name for name, value in ONNX_TYPES.items()}
FLOATS = ("float32", "float16", "bfloat16")
NUMPY_TYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Emitter:
    """Nodes and small constants of one graph under construction.

    It works on onnx's protos, as most of a graph is copied from another one node by node, and
    knows the type of every value. `graphs/graph_builder.py` writes graphs from nothing with
    onnx-ir, whose lazy tensors stand for weights that are read later; it needs no types.

    Attributes:
        compute: what the graph computes in, but for what is float32 on purpose.
        types: value -> its type.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.types: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._casts: dict[tuple[str, str], str] = {}

    def op(
        self,
        op_type: str,
        inputs: Sequence[str],
        name: str,
        *,
        output: str | None = None,
        dtype: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node with one output, of the first input's type if nothing else is said."""
        output = output or f"{name}/lowered"
        self.add(onnx.helper.make_node(op_type, inputs, [output], name, **attributes))
        self.types[output] = dtype or self.types[inputs[0]]
        return output

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node whose outputs' types the caller sets."""
        self.nodes.append(node)

    def cast(self, value: str, dtype: str, *, output: str | None = None) -> str:
        """The value as another type: itself where it is of that type already."""
        if self.types[value] == dtype and output is None:
            return value
        key = (value, dtype)
        if output is None and key in self._casts:
            return self._casts[key]
        name = f"/{value.lstrip('/')}/Cast_{dtype}"
        made = self.op("Cast", [value], name, output=output, dtype=dtype, to=ONNX_TYPES[dtype])
        if output is None:
            self._casts[key] = made
        return made

    def constant(self, name: str, array: NDArray[Any], dtype: str | None = None) -> str:
        """A small constant in the graph file; a float takes the type that is asked for.

        A positive number that would become 0 becomes the type's smallest normal one: it is there
        to be divided by.

        Args:
            name: of the initializer; one of another float type gets a suffix.
            array: any[...], its values.
            dtype: of a float; None: as it is.
        """
        if dtype is not None:
            array = narrow(array, dtype)
            name = name if dtype == "float32" else f"{name}.{dtype}"
        if name not in self.initializers:
            self.initialize(make_tensor(name, array))
        return name

    def initialize(self, tensor: onnx.TensorProto) -> str:
        """An initializer that is made already."""
        self.initializers[tensor.name] = tensor
        self.types[tensor.name] = TYPE_NAMES[tensor.data_type]
        return tensor.name

    def integers(self, *numbers: int) -> str:
        """A constant of int64s, named by them."""
        return self.constant(f"int64.{'_'.join(map(str, numbers))}", np.array(numbers, np.int64))


def narrow(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Narrow floats, no positive one becoming 0: float32[...] -> any[...], as `dtype` says."""
    target = NUMPY_TYPES[dtype]
    with np.errstate(over="ignore"):
        narrowed = array.astype(target)
    if not np.isfinite(narrowed.astype(np.float32)).all():
        largest = float(np.abs(array).max())
        raise ValueError(f"{largest:g} is no {dtype}: use --dtype bf16")
    smallest = np.array(ml_dtypes.finfo(target).smallest_normal).astype(target)
    lost = (array > 0) & (narrowed == 0)
    return np.where(lost, smallest, narrowed).astype(target).reshape(array.shape)


def make_tensor(name: str, array: NDArray[Any]) -> onnx.TensorProto:
    """An initializer with its bytes inside.

    Args:
        name: of the initializer.
        array: any[...], its values.
    """
    return onnx.numpy_helper.from_array(np.asarray(array), name)
