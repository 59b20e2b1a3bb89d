"""Add the few kinds of layers that both graphs are made of.

Activations are 2-D here, [tokens, channels]: a linear layer is then one Gemm with its bias, whose
weight keeps the checkpoint's [out, in] layout. Only attention needs [batch, tokens, channels].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...quant.rounding.weight_only import CONTRIB, INT8_ACTIVATIONS, INT8_LEVELS, SMALLEST_SCALE
from ..checkpoint.packed.matrix import PackedMatrix
from ..checkpoint.weights.tensor_source import TensorSource
from .carried import CarriedForm, can_join, carried_weight, find_form, sort_inputs
from .graph_builder import GraphBuilder, join_names
from .weights import BITS, WeightFormat, float_weight, packed_weight

FLOAT8_LARGEST = 448  # of E4M3


@dataclass(frozen=True, slots=True)
class Precision:
    """How a graph's matrices are stored; norms and biases are float32 always."""

    format: WeightFormat
    block_size: int = 64

    def __str__(self) -> str:
        """As the manifest says it."""
        names = {"fp32": "float32", "fp16": "float16"}
        return names.get(self.format, f"{self.format} block {self.block_size}")


def linear(
    graph: GraphBuilder,
    x: ir.Value,
    names: Sequence[str],
    node: str,
    precision: Precision,
    *,
    bias: bool,
) -> ir.Value:
    """Linear layers of the same input as one matrix product, their outputs side by side.

    Args:
        graph: where the nodes go.
        x: float32[tokens, in].
        names: checkpoint layers ("model.layers.0.self_attn.q_proj", ...), without ".weight".
        node: name of the node.
        precision: how the matrix is stored.
        bias: whether the layers have one.

    Returns:
        float32[tokens, sum of out].
    """
    packed = [graph.checkpoint.packed.get(name) for name in names]
    if any(packed):
        return _carried_linears(graph, x, names, packed, node, precision, bias=bias)
    weights = tuple(f"{name}.weight" for name in names)
    sources = tuple(graph.source(name) for name in weights)
    bias_value = graph.vector(*(f"{name}.bias" for name in names)) if bias else None
    for name in weights:
        graph.precision[name] = str(precision)
    return matmul(graph, x, join_names(weights), sources, node, precision, bias_value)


def _carried_linears(
    graph: GraphBuilder,
    x: ir.Value,
    names: Sequence[str],
    packed: Sequence[PackedMatrix | None],
    node: str,
    precision: Precision,
    *,
    bias: bool,
) -> ir.Value:
    """Layers that the checkpoint has packed: one product where that can be, else side by side."""
    matrices = [matrix for matrix in packed if matrix is not None]
    if can_join(packed):
        bias_value = graph.vector(*(f"{name}.bias" for name in names)) if bias else None
        return carried_matmul(graph, x, matrices, node, bias_value)
    parts = []
    for name, matrix in zip(names, packed, strict=True):
        part_node = f"{node}/{name.rpartition('.')[2]}" if len(names) > 1 else node
        if matrix is None:
            parts.append(linear(graph, x, [name], part_node, precision, bias=bias))
        else:
            bias_value = graph.vector(f"{name}.bias") if bias else None
            parts.append(carried_matmul(graph, x, [matrix], part_node, bias_value))
    return graph.op("Concat", parts, f"{node}/Concat", {"axis": 1}) if len(parts) > 1 else parts[0]


def carried_matmul(
    graph: GraphBuilder,
    x: ir.Value,
    matrices: Sequence[PackedMatrix],
    node: str,
    bias: ir.Value | None = None,
) -> ir.Value:
    """A product with packed matrices of one form, one under the other, as they are."""
    names = [f"{matrix.layer}.weight" for matrix in matrices]
    form = find_form(matrices[0])
    graph.precision |= dict.fromkeys(names, str(form))
    tensors = graph.weight(carried_weight(join_names(names), matrices))
    if form.block_size is None:
        return _rounded_product(graph, x, tensors, form, node, bias)
    packed, scales, *zero_points = tensors
    if (order := sort_inputs(matrices[0])) is not None:
        index = graph.constant(f"{matrices[0].layer}.input_order", order)
        x = graph.op("Gather", [x, index], f"{node}/input/Gather", {"axis": 1})
    attributes = {
        "K": matrices[0].shape[1],
        "N": sum(matrix.shape[0] for matrix in matrices),
        "bits": form.bits,
        "block_size": form.block_size,
        "accuracy_level": INT8_ACTIVATIONS,
    }
    inputs = [x, packed, scales, zero_points[0] if zero_points else None, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    return graph.op("MatMulNBits", inputs, f"{node}/MatMulNBits", attributes, CONTRIB)


def _rounded_product(
    graph: GraphBuilder,
    x: ir.Value,
    tensors: Sequence[ir.Value],
    form: CarriedForm,
    node: str,
    bias: ir.Value | None,
) -> ir.Value:
    """A product of 8-bit codes by rows with inputs rounded to their type.

    The nodes are those of quant/quantize/linear_nodes.py, so that its readers read these, too.
    """
    is_float = form.kind == "float8_e4m3fn"
    kind, levels = ("fp8", FLOAT8_LARGEST) if is_float else ("int8", INT8_LEVELS)
    dtype = np.dtype(ml_dtypes.float8_e4m3fn) if is_float else np.dtype(np.int8)
    zero = graph.constant(f"carried.{kind}.zero_point", np.zeros((), dtype))
    scale = None
    if form.activations == "static":
        unit = tensors[3]
    else:
        axis = graph.constant("carried.row_axis", np.array([1], np.int64))
        inverse = graph.constant(f"carried.{kind}.inverse_levels", np.array(1 / levels, np.float32))
        smallest = graph.constant("carried.smallest_scale", np.array(SMALLEST_SCALE, np.float32))
        unit = graph.constant("carried.unit_scale", np.ones((), np.float32))
        scale = graph.op("Abs", [x], f"{node}/input/Abs")
        scale = graph.op("ReduceMax", [scale, axis], f"{node}/input/ReduceMax", {"keepdims": 1})
        scale = graph.op("Mul", [scale, inverse], f"{node}/input/Mul")
        scale = graph.op("Max", [scale, smallest], f"{node}/input/Max")
        x = graph.op("Div", [x, scale], f"{node}/input/Div")
    x = graph.op("QuantizeLinear", [x, unit, zero], f"{node}/input/QuantizeLinear")
    x = graph.op("DequantizeLinear", [x, unit, zero], f"{node}/input/DequantizeLinear")
    weight = graph.op(
        "DequantizeLinear", tensors[:3], f"{node}/weight/DequantizeLinear", {"axis": 0}
    )
    product = graph.op("Gemm", [x, weight], f"{node}/MatMul", {"transB": 1})
    if scale is not None:
        product = graph.op("Mul", [product, scale], f"{node}/rescale/Mul")
    return product if bias is None else graph.op("Add", [product, bias], f"{node}/Add")


def matmul(
    graph: GraphBuilder,
    x: ir.Value,
    name: str,
    sources: tuple[TensorSource, ...],
    node: str,
    precision: Precision,
    bias: ir.Value | None = None,
) -> ir.Value:
    """A product with a stored matrix [out, in], transposed; what `linear` is made of."""
    if precision.format in BITS:
        packed, scales = graph.weight(
            packed_weight(name, sources, precision.format, precision.block_size)
        )
        attributes = {
            "K": sources[0].shape[1],
            "N": sum(source.shape[0] for source in sources),
            "bits": BITS[precision.format],
            "block_size": precision.block_size,
            "accuracy_level": INT8_ACTIVATIONS,
        }
        inputs = [x, packed, scales, *((None, None, bias) if bias is not None else ())]
        return graph.op("MatMulNBits", inputs, f"{node}/MatMulNBits", attributes, CONTRIB)
    (matrix,) = graph.weight(float_weight(name, sources, precision.format))
    if precision.format == "fp16":  # ONNX Runtime's CPU kernels are float32: cast once, at load
        matrix = graph.op("Cast", [matrix], f"{node}/Cast", {"to": ir.DataType.FLOAT})
    inputs = [x, matrix] if bias is None else [x, matrix, bias]
    return graph.op("Gemm", inputs, f"{node}/MatMul", {"transB": 1})


def rotation_tables(
    graph: GraphBuilder,
    position_ids: ir.Value,
    axis: int,
    coordinate: NDArray[np.int64],
    inv_freq: NDArray[np.float32],
    node: str,
) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine of the rotary angles, once per graph, from integer positions.

    Args:
        graph: where the nodes go.
        position_ids: int64, with the coordinates (t, h, w or row, column) along `axis`.
        axis: 0 puts the frequencies last by a transposition, 2 has them there.
        coordinate: int64[frequencies], which coordinate turns each frequency.
        inv_freq: float32[frequencies].
        node: prefix of the nodes' names.

    Returns:
        Two float32[batch, tokens, frequencies].
    """
    positions = graph.op("Cast", [position_ids], f"{node}/Cast", {"to": ir.DataType.FLOAT})
    index = graph.constant(f"{node}/coordinate", coordinate)
    angles = graph.op("Gather", [positions, index], f"{node}/Gather", {"axis": axis})
    if axis == 0:
        angles = graph.op("Transpose", [angles], f"{node}/Transpose", {"perm": [1, 2, 0]})
    frequencies = graph.constant(f"{node}/inv_freq", inv_freq)
    angles = graph.op("Mul", [angles, frequencies], f"{node}/Mul")
    return graph.op("Cos", [angles], f"{node}/Cos"), graph.op("Sin", [angles], f"{node}/Sin")


def rotate(
    graph: GraphBuilder, x: ir.Value, tables: tuple[ir.Value, ir.Value], num_heads: int, node: str
) -> ir.Value:
    """Rotary embedding of float32[batch, tokens, num_heads * head_dim], halves paired."""
    return graph.op("RotaryEmbedding", [x, *tables], node, {"num_heads": num_heads})


def flatten_tokens(graph: GraphBuilder, x: ir.Value, channels: int, node: str) -> ir.Value:
    """[batch, tokens, channels] -> [batch * tokens, channels]; no copy."""
    shape = graph.constant(f"shape_{channels}", np.array([-1, channels], np.int64))
    return graph.op("Reshape", [x, shape], node)


def batch_shape(
    graph: GraphBuilder, x: ir.Value, dims: int, tail: Sequence[int], node: str
) -> ir.Value:
    """The first `dims` sizes of x followed by `tail`: what a Reshape back needs."""
    head = graph.op("Shape", [x], f"{node}/Shape", {"start": 0, "end": dims})
    rest = graph.constant(f"{node}/tail", np.array(tail, np.int64))
    return graph.op("Concat", [head, rest], f"{node}/Concat", {"axis": 0})
