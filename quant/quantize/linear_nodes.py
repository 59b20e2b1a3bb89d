"""Make the nodes and initializers that stand for a quantized linear layer's Gemm in the graph.

    int8, fp8   x (- shift) - Q - DQ - Gemm(., DQ(codes)) - + bias   scales found by calibration
    int8-dynamic  x / s - Q(1) - DQ(1) - Gemm(., DQ(codes)) - * s - + bias,  s = max|row of x| / 127
    weight-only   MatMulNBits(x, codes), or Gemm(x, DQ(codes, blocks)) - + bias

Codes keep the checkpoint's [out, in] layout. All but MatMulNBits is standard ONNX with zero points
of 0, which TensorRT reads as well; those of the weights are written out, as ONNX Runtime makes an
integer product only of what has them. The bias is added behind: ONNX Runtime fuses a Gemm with a
float32 bias into no integer kernel (measured, 1024 x 1280 x 3840 on two cores with AMX: 29 ms with
the bias behind, 92 ms with it inside), and an int32 one TensorRT refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph.linears import Linear
from ..recipe.recipe import WEIGHT_ONLY, LinearRecipe
from ..rounding.weight_only import CONTRIB, INT8_ACTIVATIONS, INT8_LEVELS, SMALLEST_SCALE


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A linear layer's numbers after quantization.

    Attributes:
        recipe: by which it was made.
        codes: int8[N, K]; uint8[N, K], bits of E4M3; or packed uint8[N, blocks, bytes].
        scales: float32[N], or float32[N, blocks] of the weight-only formats.
        input_scale: of int8 and fp8; None of the others.
        bias: float32[N], None where the layer has none.
        shift: float32[K], subtracted from the input before it is rounded; the bias has it back.
    """

    recipe: LinearRecipe
    codes: NDArray[Any]
    scales: NDArray[np.float32]
    input_scale: float | None = None
    bias: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """What replaces a node: nodes in order, the last one making its output, and initializers."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)


def describe_precision(recipe: LinearRecipe, source: str) -> str:
    """A linear layer's precision as manifests say it; `source`: that of the float bundle."""
    if bits := WEIGHT_ONLY.get(recipe.format):
        return f"int{bits} block {recipe.block_size}"
    names = {"int8": "int8 static", "int8-dynamic": "int8 dynamic", "fp8": "float8_e4m3fn"}
    return names.get(recipe.format, source)


def place(linear: Linear, quantized: QuantizedLinear) -> Placed:
    """The nodes of one layer, by its recipe's format and layout."""
    recipe = quantized.recipe
    form = recipe.format
    if form in WEIGHT_ONLY:
        form = f"weight-only {recipe.layout}"
    return _PLACERS[form](linear, quantized)


def _place_static(linear: Linear, quantized: QuantizedLinear) -> Placed:
    placed, name = Placed(), linear.name
    is_fp8 = quantized.recipe.format == "fp8"
    dtype = np.dtype(ml_dtypes.float8_e4m3fn) if is_fp8 else np.dtype(np.int8)
    placed.tensors[f"{name}.input_scale"] = np.array(quantized.input_scale, np.float32)
    placed.tensors[f"{name}.input_zero_point"] = np.zeros((), dtype)
    pair = [f"{name}.input_scale", f"{name}.input_zero_point"]
    x = linear.input
    if quantized.shift is not None:
        placed.tensors[f"{name}.shift"] = quantized.shift
        x = _add(placed, linear, "Sub", [x, f"{name}.shift"], "input/Sub")
    x = _add(placed, linear, "QuantizeLinear", [x, *pair], "input/QuantizeLinear")
    x = _add(placed, linear, "DequantizeLinear", [x, *pair], "input/DequantizeLinear")
    product = _multiply(placed, linear, x, quantized.codes.view(dtype), quantized.scales)
    return _finish(placed, linear, product, quantized.bias)


def _place_dynamic(linear: Linear, quantized: QuantizedLinear) -> Placed:
    placed = Placed()
    constants = {
        "row_axis": np.array([1], np.int64),
        "inverse_levels": np.array(1 / INT8_LEVELS, np.float32),
        "smallest_scale": np.array(SMALLEST_SCALE, np.float32),
        "unit_scale": np.ones((), np.float32),
        "unit_zero_point": np.zeros((), np.int8),
    }
    placed.tensors.update({f"dynamic.{key}": value for key, value in constants.items()})
    unit = ["dynamic.unit_scale", "dynamic.unit_zero_point"]
    magnitude = _add(placed, linear, "Abs", [linear.input], "input/Abs")
    largest = _add(
        placed, linear, "ReduceMax", [magnitude, "dynamic.row_axis"], "input/ReduceMax", keepdims=1
    )
    scale = _add(placed, linear, "Mul", [largest, "dynamic.inverse_levels"], "input/Mul")
    scale = _add(placed, linear, "Max", [scale, "dynamic.smallest_scale"], "input/Max")
    x = _add(placed, linear, "Div", [linear.input, scale], "input/Div")
    x = _add(placed, linear, "QuantizeLinear", [x, *unit], "input/QuantizeLinear")
    x = _add(placed, linear, "DequantizeLinear", [x, *unit], "input/DequantizeLinear")
    product = _multiply(placed, linear, x, quantized.codes, quantized.scales)
    product = _add(placed, linear, "Mul", [product, scale], "rescale/Mul")
    return _finish(placed, linear, product, quantized.bias)


def _place_blocks(linear: Linear, quantized: QuantizedLinear) -> Placed:
    placed, recipe, weight = Placed(), quantized.recipe, linear.weight
    placed.tensors[f"{weight}.packed"] = quantized.codes
    placed.tensors[f"{weight}.scales"] = quantized.scales
    inputs = [linear.input, f"{weight}.packed", f"{weight}.scales"]
    if quantized.bias is not None and linear.bias is not None:
        placed.tensors[linear.bias] = quantized.bias
        inputs += ["", "", linear.bias]
    node = onnx.helper.make_node(
        "MatMulNBits",
        inputs,
        [linear.output],
        f"{linear.prefix}/MatMulNBits",
        domain=CONTRIB,
        K=linear.in_features,
        N=linear.out_features,
        bits=WEIGHT_ONLY[recipe.format],
        block_size=recipe.block_size,
        accuracy_level=INT8_ACTIVATIONS,
    )
    placed.nodes.append(node)
    return placed


def _place_blocks_qdq(linear: Linear, quantized: QuantizedLinear) -> Placed:
    """The same codes without MatMulNBits' offset: int8 and int4 have their zero in the middle."""
    placed, recipe = Placed(), quantized.recipe
    codes = unpack_levels(quantized.codes, WEIGHT_ONLY[recipe.format])[:, : linear.in_features]
    dtype = np.dtype(np.int8 if recipe.format == "int8-weight" else ml_dtypes.int4)
    product = _multiply(
        placed,
        linear,
        linear.input,
        codes.astype(dtype),
        quantized.scales,
        recipe.block_size,
    )
    return _finish(placed, linear, product, quantized.bias)


def unpack_levels(packed: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """MatMulNBits' codes, uint8[N, blocks, bytes] -> levels, int8[N, blocks * block_size]."""
    codes = packed
    if bits == 4:
        codes = np.stack((packed & 15, packed >> 4), axis=3)
    flat = codes.reshape(len(packed), -1)
    return (flat.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def _multiply(
    placed: Placed,
    linear: Linear,
    x: str,
    codes: NDArray[Any],
    scales: NDArray[np.float32],
    block_size: int | None = None,
) -> str:
    """Gemm with dequantized weights; the name of the product."""
    suffix = codes.dtype.name.replace("float8_e4m3fn", "fp8")
    tensors = {f"{linear.weight}.{suffix}": codes, f"{linear.weight}.scales": scales}
    attributes = {"axis": 0} if block_size is None else {"axis": 1, "block_size": block_size}
    if block_size is None:
        tensors[f"{linear.weight}.zero_points"] = np.zeros(len(codes), codes.dtype)
    placed.tensors.update(tensors)
    node_name = "weight/DequantizeLinear"
    weight = _add(placed, linear, "DequantizeLinear", [*tensors], node_name, **attributes)
    return _add(placed, linear, "Gemm", [x, weight], "MatMul", transB=1)


def _finish(
    placed: Placed, linear: Linear, product: str, bias: NDArray[np.float32] | None
) -> Placed:
    """Add the bias, if there is one, and give the result the name the float graph's has."""
    if bias is not None and linear.bias is not None:
        placed.tensors[linear.bias] = bias
        _add(placed, linear, "Add", [product, linear.bias], "Add")
    placed.nodes[-1].output[0] = linear.output
    return placed


def _add(
    placed: Placed, linear: Linear, op_type: str, inputs: list[str], name: str, **attributes: Any
) -> str:
    """Append a node of one output; the output's name."""
    node_name = f"{linear.prefix}/{name}"
    output = f"{node_name}/quantized"
    node = onnx.helper.make_node(op_type, inputs, [output], node_name, **attributes)
    placed.nodes.append(node)
    return output


_PLACERS: dict[str, Callable[[Linear, QuantizedLinear], Placed]] = {
    "int8": _place_static,
    "fp8": _place_static,
    "int8-dynamic": _place_dynamic,
    "weight-only onnxruntime": _place_blocks,
    "weight-only qdq": _place_blocks_qdq,
}
