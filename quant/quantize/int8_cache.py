"""Change the decoder's attentions to keep keys and values as int8.

GroupQueryAttention rounds what enters its cache itself: one scale a layer, or one a channel, which
keys need whose channels differ much. A cache of float32 is four times as large.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph.stages import name_stage
from ..recipe.recipe import CacheFormat
from ..rounding.int8 import tensor_scale
from .calibration import LayerCalibration
from .linear_nodes import Placed
from .products import CACHE_PARTS, name_cache

QUANT_TYPES = {"int8-tensor": "PER_TENSOR", "int8-channel": "PER_CHANNEL"}
PRECISIONS = {"int8-tensor": "int8 per tensor", "int8-channel": "int8 per channel"}
FIRST_SCALE_INPUT = 12  # of GroupQueryAttention: k_scale, then v_scale
SMALLEST_RANGE = 1e-6  # of a channel that calibration only saw as 0


def make_cache_nodes(
    graph: onnx.GraphProto,
    format: CacheFormat,
    calibration: Mapping[str, LayerCalibration],
    num_kv_heads: int,
) -> dict[str, Placed]:
    """Of every GroupQueryAttention, by its name, what stands for it; nothing for a float cache."""
    made: dict[str, Placed] = {}
    if format == "float":
        return made
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        tensors = {}
        changed.input.extend([""] * (FIRST_SCALE_INPUT - len(changed.input)))
        for part in CACHE_PARTS:
            name = name_cache(name_stage(node.name), part)
            scale_name = f"{name}.scale"
            amax = calibration[name].stats.channel_amax
            tensors[scale_name] = make_scale(amax, format, num_kv_heads)
            changed.input.append(scale_name)
        kind = QUANT_TYPES[format]
        changed.attribute.extend(
            onnx.helper.make_attribute(name, value)
            for name, value in (
                ("k_quant_type", kind),
                ("v_quant_type", kind),
                ("kv_cache_bit_width", 8),
            )
        )
        made[node.name] = Placed([changed], tensors)
    return made


def make_scale(
    channel_amax: NDArray[np.float32], format: CacheFormat, num_kv_heads: int
) -> NDArray[np.float32]:
    """The scale of a layer's keys or values, by the cache's format.

    Args:
        channel_amax: float32[num_kv_heads * head_dim], the largest magnitudes.
        format: one scale, or one for each channel.
        num_kv_heads: heads of keys and values.

    Returns:
        float32[1], or float32[1, num_kv_heads, 1, head_dim].
    """
    amax = np.maximum(channel_amax, np.float32(SMALLEST_RANGE))
    if format == "int8-tensor":
        return np.array([tensor_scale(float(amax.max()))], np.float32)
    scale = np.divide(amax, np.float32(127), dtype=np.float32)
    return scale.reshape(1, num_kv_heads, 1, -1)


def mark_cache(graph: onnx.GraphProto) -> None:
    """Declare the cache's inputs and outputs int8."""
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
