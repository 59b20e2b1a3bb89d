"""What is not a linear layer but is calibrated: the KV cache's keys and values."""

from __future__ import annotations

import onnx

from .recipe import Recipe
from .stages import name_stage

CACHE_PARTS = {"key": 1, "value": 2}  # which input of GroupQueryAttention goes into the cache


def name_cache(stage: str, part: str) -> str:
    """Keys or values of a layer's cache: "model.layers.0.self_attn.cache.key"."""
    return f"{stage}.self_attn.cache.{part}"


def list_observed(graph: onnx.GraphProto, recipe: Recipe) -> dict[str, dict[str, str]]:
    """Stage -> what calibration has to see there beside the linear layers' inputs.

    Returns:
        By stage: name -> value of the float graph, float32[..., num_kv_heads * head_dim].
    """
    if recipe.kv_cache.format == "float":
        return {}
    return {
        name_stage(node.name): {
            name_cache(name_stage(node.name), part): node.input[index]
            for part, index in CACHE_PARTS.items()
        }
        for node in graph.node
        if node.op_type == "GroupQueryAttention"
    }
