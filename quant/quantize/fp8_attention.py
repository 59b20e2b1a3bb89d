"""Write out the ViT's attentions with FP8 on both products.

    q / sqrt(head_dim) - Q/DQ -+
    k, transposed      - Q/DQ -+- MatMul - Softmax - Q/DQ(1 / 448) -+- MatMul - heads joined
    v                  - Q/DQ --------------------------------------+

Q/DQ stands directly on the inputs of each MatMul, the division and the transposition before it:
that is where TensorRT fuses FP8 attention. Softmax is at most 1, so its scale is fixed. Written
out, attention keeps all N x N scores: on a CPU this is a simulation, for small pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from ..graph.stages import name_stage
from ..recipe.recipe import AttentionFormat
from ..rounding.fp8 import MAX, tensor_scale
from .calibration import LayerCalibration
from .linear_nodes import Placed
from .products import FACTORS, name_factor

DTYPE = np.dtype(ml_dtypes.float8_e4m3fn)
SOFTMAX_SCALE = 1 / MAX
ZERO_POINT = "fp8_attention.zero_point"


def make_attention_nodes(
    graph: onnx.GraphProto,
    format: AttentionFormat,
    calibration: Mapping[str, LayerCalibration],
    num_heads: int,
) -> dict[str, Placed]:
    """Of every MultiHeadAttention, by its name, what stands for it; nothing if it stays float."""
    if format == "float":
        return {}
    return {
        node.name: _write_out(node, calibration, num_heads)
        for node in graph.node
        if node.op_type == "MultiHeadAttention"
    }


def _write_out(
    node: onnx.NodeProto, calibration: Mapping[str, LayerCalibration], num_heads: int
) -> Placed:
    stage, prefix = name_stage(node.name), node.name
    stats = {f: calibration[name_factor(stage, f)].stats for f in FACTORS}
    head_dim = len(stats["query"].channel_amax) // num_heads
    root = 1 / math.sqrt(head_dim)
    ranges = {factor: float(found.channel_amax.max()) for factor, found in stats.items()}
    ranges["query"] *= root
    placed = Placed(
        tensors={
            ZERO_POINT: np.zeros((), DTYPE),
            "fp8_attention.heads": np.array([0, 0, num_heads, head_dim], np.int64),
            "fp8_attention.joined": np.array([0, 0, num_heads * head_dim], np.int64),
            "fp8_attention.root": np.array(root, np.float32),
            f"{prefix}/softmax.scale": np.array(SOFTMAX_SCALE, np.float32),
        }
    )

    def add(op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = f"{prefix}/{name}/quantized"
        placed.nodes.append(
            onnx.helper.make_node(op_type, inputs, [output], f"{prefix}/{name}", **attributes)
        )
        return output

    def round_trip(value: str, name: str) -> str:
        pair = [f"{prefix}/{name}.scale", ZERO_POINT]
        codes = add("QuantizeLinear", [value, *pair], f"{name}/QuantizeLinear")
        return add("DequantizeLinear", [codes, *pair], f"{name}/DequantizeLinear")

    factors = {}
    for factor, index in FACTORS.items():
        scale = np.array(tensor_scale(ranges[factor]), np.float32)
        placed.tensors[f"{prefix}/{factor}.scale"] = scale
        x = add("Reshape", [node.input[index], "fp8_attention.heads"], f"{factor}/Reshape")
        order = [0, 2, 3, 1] if factor == "key" else [0, 2, 1, 3]
        x = add("Transpose", [x], f"{factor}/Transpose", perm=order)
        if factor == "query":
            x = add("Mul", [x, "fp8_attention.root"], f"{factor}/Mul")
        factors[factor] = round_trip(x, factor)
    scores = add("MatMul", [factors["query"], factors["key"]], "scores/MatMul")
    shares = round_trip(add("Softmax", [scores], "Softmax", axis=-1), "softmax")
    x = add("MatMul", [shares, factors["value"]], "mix/MatMul")
    x = add("Transpose", [x], "join/Transpose", perm=[0, 2, 1, 3])
    add("Reshape", [x, "fp8_attention.joined"], "join/Reshape")
    placed.nodes[-1].output[0] = node.output[0]
    return placed
