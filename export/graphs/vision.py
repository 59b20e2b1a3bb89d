"""Build the ViT graph: raw RGB patches and their positions to the embeddings of visual tokens.

           pixel_values [I, N, 588]         position_ids [I, N, 2]
                 |                                 |
         patch embedding (mean, std, 1/255 folded) cos, sin [I, N, 20 + 20]
                 |                                 |
        32 x  norm - qkv - rotary (q, k) <---------+
                 |         attention inside one image, never across I
                 |         norm - MLP (QuickGELU)
              norm - 4 neighbours side by side - MLP (GELU)
                 |
           image_embeds [I, N / 4, D]

Attention has no mask: only then does ONNX Runtime's CPU kernel work in tiles instead of keeping
N x N scores. Images of another grid go through another run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...quant.rounding.weight_only import CONTRIB
from ...runtime.bundle.manifest import PixelBudget
from ..checkpoint.config import VISION_ROPE_THETA
from ..checkpoint.open import Checkpoint
from .data_file import DataFile
from .graph_builder import GraphBuilder
from .layers import Precision, batch_shape, flatten_tokens, linear, rotate, rotation_tables
from .residual import add_and_norm
from .weights import StoredTensor, Weight, to_float32

LAYER_NORM_EPS = 1e-6  # fixed in the reference, not in the config
QUICK_GELU_ALPHA = 1.702
PATCH_WEIGHT = "visual.patch_embed.proj.weight"


def build_vision(
    checkpoint: Checkpoint,
    data: DataFile,
    precision: Precision,
    pixels: PixelBudget,
    *,
    num_frames: int,
) -> tuple[ir.Model, dict[str, str]]:
    """Build the graph for images (num_frames 1) or for frame pairs (2).

    Returns:
        The model, and how each checkpoint tensor it uses is stored.
    """
    spec = checkpoint.spec
    vision, hidden_size = spec.vision, spec.decoder.hidden_size
    graph = GraphBuilder("vision" if num_frames == 1 else "vision_video", checkpoint, data)
    patch_size = num_frames * spec.frame_patch_size
    pixel_values = graph.input("pixel_values", "uint8", ["num_images", "num_patches", patch_size])
    position_ids = graph.input("position_ids", "int64", ["num_images", "num_patches", 2])

    tables = _rotation_tables(graph, position_ids, vision.embed_dim // vision.num_heads)
    per_image = batch_shape(graph, pixel_values, 2, [3 * vision.embed_dim], "/visual/per_image")
    x = _embed_patches(graph, pixel_values, pixels, num_frames)
    normed = graph.op(
        "LayerNormalization",
        [x, *_norm(graph, "visual.blocks.0.norm1")],
        "/visual/blocks.0/norm1/LayerNorm",
        {"axis": -1, "epsilon": LAYER_NORM_EPS},
    )
    for i in range(vision.depth):
        block, node = f"visual.blocks.{i}", f"/visual/blocks.{i}"
        attention = _attend(graph, normed, tables, per_image, i, precision)
        normed, x = _add_and_norm(graph, x, attention, f"{block}.norm2", f"{node}/norm2")
        mlp = linear(graph, normed, [f"{block}.mlp.fc1"], f"{node}/mlp/fc1", precision, bias=True)
        alpha = {"alpha": QUICK_GELU_ALPHA}
        mlp = graph.op("QuickGelu", [mlp], f"{node}/mlp/act/QuickGelu", alpha, CONTRIB)
        mlp = linear(graph, mlp, [f"{block}.mlp.fc2"], f"{node}/mlp/fc2", precision, bias=True)
        last = i + 1 == vision.depth
        norm = "visual.merger.ln_q" if last else f"visual.blocks.{i + 1}.norm1"
        normed, x = _add_and_norm(graph, x, mlp, norm, "/" + norm.replace(".", "/", 1), last)

    merged = flatten_tokens(graph, normed, spec.merged_size, "/visual/merger/Reshape")
    merged = linear(
        graph, merged, ["visual.merger.mlp.0"], "/visual/merger/mlp.0", precision, bias=True
    )
    merged = graph.op("Gelu", [merged], "/visual/merger/mlp.1/Gelu", domain=CONTRIB)
    merged = linear(
        graph, merged, ["visual.merger.mlp.2"], "/visual/merger/mlp.2", precision, bias=True
    )
    shape = batch_shape(graph, pixel_values, 1, [-1, hidden_size], "/visual/image_embeds")
    embeds = graph.op("Reshape", [merged, shape], "/visual/image_embeds/Reshape")
    graph.output(embeds, "image_embeds", "float32", ["num_images", "num_tokens", hidden_size])
    return graph.build(), graph.precision


def _attend(
    graph: GraphBuilder,
    normed: ir.Value,
    tables: tuple[ir.Value, ir.Value],
    per_image: ir.Value,
    index: int,
    precision: Precision,
) -> ir.Value:
    vision = graph.checkpoint.spec.vision
    block, node = f"visual.blocks.{index}.attn", f"/visual/blocks.{index}/attn"
    qkv = linear(graph, normed, [f"{block}.qkv"], f"{node}/qkv", precision, bias=True)
    qkv = graph.op("Reshape", [qkv, per_image], f"{node}/Reshape")
    q, k, v = graph.ops(
        "Split", [qkv], f"{node}/Split", {"axis": 2, "num_outputs": 3}, num_outputs=3
    )
    q = rotate(graph, q, tables, vision.num_heads, f"{node}/q_rotary/RotaryEmbedding")
    k = rotate(graph, k, tables, vision.num_heads, f"{node}/k_rotary/RotaryEmbedding")
    heads = {"num_heads": vision.num_heads}
    x = graph.op("MultiHeadAttention", [q, k, v], f"{node}/MultiHeadAttention", heads, CONTRIB)
    x = flatten_tokens(graph, x, vision.embed_dim, f"{node}/Reshape_back")
    return linear(graph, x, [f"{block}.proj"], f"{node}/proj", precision, bias=True)


def _add_and_norm(
    graph: GraphBuilder, x: ir.Value, branch: ir.Value, norm: str, node: str, last: bool = False
) -> tuple[ir.Value, ir.Value]:
    """LayerNorm of the residual sum, and the sum."""
    return add_and_norm(
        graph,
        "SkipLayerNormalization",
        x,
        branch,
        _norm(graph, norm),
        LAYER_NORM_EPS,
        f"{node}/SkipLayerNorm",
        last=last,
    )


def _norm(graph: GraphBuilder, name: str) -> tuple[ir.Value, ir.Value]:
    return graph.vector(f"{name}.weight"), graph.vector(f"{name}.bias")


def _rotation_tables(
    graph: GraphBuilder, position_ids: ir.Value, head_dim: int
) -> tuple[ir.Value, ir.Value]:
    """The first half of a head's frequencies turns by the row, the second by the column."""
    exponents = np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2)
    inv_freq = (1 / VISION_ROPE_THETA**exponents).astype(np.float32)
    coordinate = np.repeat(np.array([0, 1], np.int64), len(inv_freq))
    both = np.concatenate([inv_freq, inv_freq])
    return rotation_tables(graph, position_ids, 2, coordinate, both, "/visual/rotary")


def _embed_patches(
    graph: GraphBuilder, pixel_values: ir.Value, pixels: PixelBudget, num_frames: int
) -> ir.Value:
    spec = graph.checkpoint.spec
    size = num_frames * spec.frame_patch_size
    graph.precision[PATCH_WEIGHT] = "float32"
    matrix, bias = graph.weight(
        patch_weight(graph.checkpoint, pixels.image_mean, pixels.image_std, num_frames)
    )
    x = flatten_tokens(graph, pixel_values, size, "/visual/patch_embed/Reshape")
    x = graph.op("Cast", [x], "/visual/patch_embed/Cast", {"to": ir.DataType.FLOAT})
    return graph.op("Gemm", [x, matrix, bias], "/visual/patch_embed/proj/MatMul", {"transB": 1})


def patch_weight(
    checkpoint: Checkpoint, mean: Sequence[float], std: Sequence[float], num_frames: int
) -> Weight:
    """The patch embedding with rescaling and normalization folded in, as a matrix and a bias.

    W ((u / 255 - mean) / std) = (W / (255 std)) u - W (mean / std), with u the raw levels. An image
    is its own second frame, so both frames' weights are added up. Computed in float64.
    """
    source = checkpoint.tensors[PATCH_WEIGHT]
    dim, channels, frames, *patch = source.shape
    size = num_frames * checkpoint.spec.frame_patch_size
    name = f"{PATCH_WEIGHT}.{size}"
    float32 = ir.DataType.FLOAT
    stored = (
        StoredTensor(name, float32, (dim, size)),
        StoredTensor(f"{name}.bias", float32, (dim,)),
    )

    def encode(raw: NDArray, dtype: str, _: int) -> tuple[NDArray, ...]:
        weight = to_float32(raw, dtype).astype(np.float64).reshape(dim, channels, frames, *patch)
        if not np.isfinite(weight).all():
            raise ValueError("the tensor holds NaN or infinite values")
        if num_frames == 1:
            weight = weight.sum(axis=2, keepdims=True)
        scale = np.reshape(std, (1, channels, 1, 1, 1))
        offset = np.reshape(mean, (1, channels, 1, 1, 1))
        bias = -(weight * (offset / scale)).sum(axis=(1, 2, 3, 4))
        matrix = (weight / (255 * scale)).reshape(dim, size)
        return matrix.astype(np.float32), bias.astype(np.float32)

    return Weight(stored, (source,), encode, whole=True)
