"""Rewrite one graph of the onnxruntime flavor for a TensorRT.

node by node:  a rule of RULES, or the same operator again
edges:         float32 for the host, which has no bfloat16; uint8 levels are cast at once, as
TensorRT takes them at an input and nowhere else
in between:    the compute type, but for norms, angles, the patch embedding and the ViT's
rotation, which are float32 as in the reference
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from ...runtime import __version__
from . import activations, attention, matrices, norms
from .attention import MASK, WRITE_INDICES
from .context import Lowering
from .emitter import ONNX_TYPES, TYPE_NAMES
from .targets import BLOCKS_OPSET

IR_VERSION = 10  # of ONNX 1.16, the first with INT4: older parsers than it read no INT4 anyway
CACHE_PREFIXES = ("past_key_values.", "present.")
GIVEN_UP = ("seqlens_k", "total_sequence_length")  # the mask says the same

Rule = Callable[[Lowering, onnx.NodeProto], None]
RULES: Mapping[str, Rule] = {
    "Cast": matrices.lower_cast,
    "Gemm": matrices.lower_gemm,
    "MatMulNBits": matrices.lower_matmul_nbits,
    "DequantizeLinear": matrices.lower_dequantize,
    "LayerNormalization": norms.lower_layer_norm,
    "RMSNormalization": norms.lower_rms_norm,
    "SkipLayerNormalization": norms.lower_skip_layer_norm,
    "SkipSimplifiedLayerNormalization": norms.lower_skip_rms_norm,
    "QuickGelu": activations.lower_quick_gelu,
    "Gelu": activations.lower_gelu,
    "RotaryEmbedding": attention.lower_rotary,
    "MultiHeadAttention": attention.lower_vision_attention,
    "GroupQueryAttention": attention.lower_cached_attention,
}
# Standard operators that every target's parser takes as they are.
KEPT = frozenset(
    {
        *("Abs", "Add", "Concat", "Cos", "Div", "Gather", "GatherND", "MatMul", "Max", "Mul"),
        *("QuantizeLinear", "ReduceMax", "Reshape", "Shape", "Sin", "Softmax", "Split", "Sub"),
        *("Transpose", "Unsqueeze"),
    }
)


def lower_graph(
    name: str, model: onnx.ModelProto, lowering: Lowering, capacity: int | None
) -> onnx.ModelProto:
    """Write the graph that `lowering` was set up for.

    Args:
        name: "vision", "vision_video" or "decoder".
        model: the graph that is read.
        lowering: fresh; its notes are there afterwards.
        capacity: tokens of a cache that is written in place.

    Raises:
        ValueError: an operator that no rule knows, or a cache that is not float.
    """
    inputs = [_declare(lowering, value) for value in model.graph.input if _stays(value.name)]
    if name == "decoder":
        inputs += _declare_mask(lowering, capacity)
    for node in model.graph.node:
        rule = RULES.get(node.op_type)
        if rule is not None:
            rule(lowering, node)
        elif node.op_type in KEPT and not node.domain:
            lowering.pass_through(node)
        else:
            raise ValueError(f"{node.name}: no target takes the operator {node.op_type}")
    outputs = [_finish(lowering, value) for value in model.graph.output]
    for value in (*inputs, *outputs):
        _fix_cache(lowering, value, capacity)
    return _assemble(name, lowering, inputs, outputs)


def _stays(name: str) -> bool:
    return name not in GIVEN_UP


def _declare(lowering: Lowering, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    e, name = lowering.emitter, value.name
    kind = value.type.tensor_type.elem_type
    if name.startswith(CACHE_PREFIXES):
        if kind == onnx.TensorProto.INT8:
            raise ValueError(
                "the bundle keeps its KV cache as int8, which no target's graph does: "
                "quantize with kv_cache float"
            )
        e.types[name] = e.compute
        return value
    e.types[name] = TYPE_NAMES[kind]
    if kind == onnx.TensorProto.UINT8:
        lowering.values[name] = e.cast(name, "float32")
    elif kind == onnx.TensorProto.FLOAT:
        lowering.values[name] = e.cast(name, e.compute)
    return value


def _declare_mask(lowering: Lowering, capacity: int | None) -> list[onnx.ValueInfoProto]:
    make = onnx.helper.make_tensor_value_info
    lowering.emitter.types[MASK] = "bool"
    width: int | str = "total" if capacity is None else capacity
    mask = make(MASK, onnx.TensorProto.BOOL, ["batch", 1, "sequence", width])
    if lowering.cache == "append":
        return [mask]
    lowering.emitter.types[WRITE_INDICES] = "int64"
    return [make(WRITE_INDICES, onnx.TensorProto.INT64, ["batch"]), mask]


def _finish(lowering: Lowering, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An output as the host wants it."""
    e, name = lowering.emitter, value.name
    if name.startswith(CACHE_PREFIXES) or e.compute == "float32":
        return value
    producer = next(node for node in reversed(e.nodes) if name in node.output)
    inner = f"{name}/{e.compute}"
    producer.output[0] = inner
    e.types[inner] = e.types.pop(name)
    e.cast(inner, "float32", output=name)
    return value


def _fix_cache(lowering: Lowering, value: onnx.ValueInfoProto, capacity: int | None) -> None:
    if not value.name.startswith(CACHE_PREFIXES):
        return
    tensor = value.type.tensor_type
    tensor.elem_type = ONNX_TYPES[lowering.emitter.compute]
    tokens = tensor.shape.dim[2]
    if capacity is not None:
        tokens.dim_value = capacity
    elif value.name.startswith("present."):
        tokens.dim_param = "sequence"


def _assemble(
    name: str,
    lowering: Lowering,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    e = lowering.emitter
    used = {value for node in e.nodes for value in node.input}
    initializers = [tensor for key, tensor in e.initializers.items() if key in used]
    graph = onnx.helper.make_graph(e.nodes, name, inputs, outputs, initializers)
    has_blocks = any(
        attribute.name == "block_size" for node in e.nodes for attribute in node.attribute
    )
    has_blocks |= any(tensor.data_type == onnx.TensorProto.INT4 for tensor in initializers)
    opset = max(lowering.target.opset, BLOCKS_OPSET if has_blocks else 0)
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
        producer_name="vlmedge",
        producer_version=__version__,
    )
