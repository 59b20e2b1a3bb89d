"""Name what is calibrated beside linear layers: attention's products and its cache."""

from __future__ import annotations

import onnx

from ..graph.stages import name_stage
from ..recipe.recipe import Recipe

CACHE_PARTS = {"key": 1, "value": 2}  # which input of GroupQueryAttention goes into the cache
FACTORS = {"query": 0, "key": 1, "value": 2}  # inputs of MultiHeadAttention


def name_cache(stage: str, part: str) -> str:
    """Keys or values of a layer's cache: "model.layers.0.self_attn.cache.key"."""
    return f"{stage}.self_attn.cache.{part}"


def name_factor(stage: str, factor: str) -> str:
    """A factor of the ViT's attention products: "visual.blocks.0.attn.products.query"."""
    return f"{stage}.attn.products.{factor}"


def list_observed(graph: onnx.GraphProto, recipe: Recipe) -> dict[str, dict[str, str]]:
    """Stage -> what calibration has to see there beside the linear layers' inputs.

    Returns:
        By stage: name -> value of the float graph, float32[..., heads * head_dim].
    """
    observed: dict[str, dict[str, str]] = {}
    for node in graph.node:
        stage = name_stage(node.name)
        if node.op_type == "GroupQueryAttention" and recipe.kv_cache.format != "float":
            observed[stage] = {name_cache(stage, p): node.input[i] for p, i in CACHE_PARTS.items()}
        if node.op_type == "MultiHeadAttention" and recipe.attention.vision != "float":
            observed[stage] = {name_factor(stage, f): node.input[i] for f, i in FACTORS.items()}
    return observed
