"""Add up what a request takes of a board's memory, and what building its engines takes.

Engines run one after another in one scratch block, so that the neediest call counts, not the sum.
Weights, cache and buffers are exact; activations are an upper bound without fusion; what CUDA,
TensorRT and Python take is assumed, and said to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .model_shapes import Part
from .tokens import PromptPlan, Visual
from .work import Costing

MIB = 1 << 20
# CUDA's context and kernels, TensorRT's libraries: what published peaks of a 2B model have beyond
# its weights, cache and buffers (scripts/check_plan.py)
OVERHEAD_BYTES = 1100 * MIB
PROCESS_BYTES = 250 * MIB  # Python, NumPy, the tokenizer
CPU_PROCESS_BYTES = 350 * MIB  # and ONNX Runtime
WORKSPACE_BYTES = 64 * MIB  # scratch of single kernels, where no limit is set
# A builder keeps the weights it reads, those it turned, and the serialized engine. Measured on a
# CPU with TensorRT-RTX 1.7.1, memory that the system can't have back: the 2B's ViT in bfloat16 took
# 2.9 times its weights, its decoder 3.2 times. 3 to 4 times were reported of another builder on a
# Thor (TensorRT-Edge-LLM issue 30).
BUILD_COPIES = 3.3
# The largest piece a builder asked for, in lm_head's weights (1.03 GiB for 593 MiB; see
# docs/planning.md)
HEAD_TACTIC = 1.75
_BUILD_LINE = f"{BUILD_COPIES:g} times the neediest engine's weights"
PAGE_BYTES = 4096
SCORE_COPIES = 2  # scores before and behind the softmax


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One line of the sum."""

    name: str
    nbytes: int
    kind: str  # "exact", "bound", "assumed"


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one call of an engine needs beside its weights, bytes.

    Attributes:
        activations: with attention's scores kept on the chip.
        scores: what they take more if they are not.
        edges: inputs and outputs.
    """

    activations: int
    scores: int
    edges: int

    def total(self, *, is_fused: bool) -> int:
        """Of scratch memory."""
        return self.activations + (0 if is_fused else self.scores)


def measure_vision(costing: Costing, visual: Visual, num_slices: int) -> Buffers:
    """One call of the ViT over slices of one picture's or clip's grid."""
    shapes, size = costing.shapes, costing.float_bytes
    patches = visual.num_patches * num_slices
    num_frames = 1 if visual.kind == "image" else shapes.frames_per_patch
    width, mlp = shapes.vision_width, shapes.vision_mlp
    # The residual, qkv, both turned and as they were in float32, the mixture; or the MLP's two
    attention = 7 * size * width + 8 * width
    feed_forward = 2 * size * (width + mlp) + 4 * width
    pixels = patches * (shapes.frame_patch_size * num_frames + 16)  # uint8, two int64
    tokens = patches // shapes.merged_patches
    return Buffers(
        activations=patches * max(attention, feed_forward),
        scores=SCORE_COPIES * size * shapes.vision_heads * visual.num_patches**2 * num_slices,
        edges=pixels + 4 * tokens * shapes.hidden_size,
    )


def measure_decoder(
    costing: Costing, batch: int, new_tokens: int, attended: int, *, in_place: bool
) -> Buffers:
    """One call of the decoder."""
    shapes, size = costing.shapes, costing.float_bytes
    rows = batch * new_tokens
    hidden, mlp, qkv = shapes.hidden_size, shapes.decoder_mlp, shapes.qkv_width
    attention = size * (2 * hidden + 2 * qkv) + 4 * hidden
    feed_forward = size * (2 * hidden + 4 * mlp) + 4 * hidden
    logits = batch * shapes.table_rows * (4 + size)
    new_rows = 0 if in_place else shapes.cache_bytes(new_tokens, batch, size)
    return Buffers(
        activations=rows * max(attention, feed_forward) + logits,
        scores=SCORE_COPIES * size * shapes.num_heads * rows * attended,
        edges=rows * (4 * hidden + 24 + attended) + new_rows,
    )


def list_run_parts(
    costing: Costing,
    prompt: PromptPlan,
    weights: Mapping[Part, int],
    table_bytes: int,
    cache_bytes: int,
    buffers: Sequence[tuple[Buffers, bool]],
    *,
    has_gpu: bool,
    has_video: bool,
    is_unified: bool = True,
    repeated_bytes: int = 0,
) -> list[MemoryPart]:
    """The sum while a request runs.

    Args:
        costing: of the model.
        prompt: of the request.
        weights: of each part, as engines hold them.
        table_bytes: of the embedding table, which is mapped and read where a token needs it.
        cache_bytes: of keys and values.
        buffers: of each call, and whether its scores stay on the chip.
        has_gpu: TensorRT, or ONNX Runtime on the CPU.
        has_video: whether an engine for clips is loaded as well.
        is_unified: whether what the host keeps is in the same memory.
        repeated_bytes: of weights that engines hold twice.
    """
    row_bytes = max(1, table_bytes // costing.shapes.table_rows)
    pages = prompt.capacity * (1 + -(-row_bytes // PAGE_BYTES)) * PAGE_BYTES
    scratch = max(b.total(is_fused=is_fused) for b, is_fused in buffers)
    parts = [
        MemoryPart("ViT weights", weights["vision"], "exact"),
        MemoryPart("decoder weights", weights["decoder"], "exact"),
        MemoryPart("lm_head weights", weights["lm_head"], "exact"),
        MemoryPart("KV cache", cache_bytes, "exact"),
        MemoryPart("activations", scratch, "bound"),
        MemoryPart("inputs and outputs", sum(b.edges for b, _ in buffers), "bound"),
    ]
    if has_video and has_gpu:
        parts.insert(1, MemoryPart("ViT weights again, for clips", weights["vision"], "exact"))
    if repeated_bytes:
        parts.append(MemoryPart("gate and up again, for prompts", repeated_bytes, "assumed"))
    if has_gpu:
        parts.append(MemoryPart("kernels' workspace", WORKSPACE_BYTES, "assumed"))
        parts.append(MemoryPart("CUDA and TensorRT", OVERHEAD_BYTES, "assumed"))
    if is_unified:
        process = PROCESS_BYTES if has_gpu else CPU_PROCESS_BYTES
        parts.append(MemoryPart("embedding rows in use", min(table_bytes, pages), "bound"))
        parts.append(MemoryPart("Python process", process, "assumed"))
    return parts


def list_build_parts(
    vision_bytes: int, layer_bytes: Sequence[int], head_bytes: int, split: int, separate: bool
) -> list[MemoryPart]:
    """The sum while the neediest engine is built.

    Args:
        vision_bytes: of the ViT's weights.
        layer_bytes: of each layer of the decoder.
        head_bytes: of the lm_head.
        split: consecutive engines of the decoder.
        separate: whether the lm_head is an engine of its own.

    Raises:
        ValueError: more parts than layers.
    """
    if not 0 < split <= len(layer_bytes):
        raise ValueError(f"split is {split}, the decoder has {len(layer_bytes)} layers")
    sizes = list(layer_bytes)
    if not separate:
        sizes[-1] += head_bytes
    decoder = largest_part(sizes, split)
    if separate:
        decoder = max(decoder, head_bytes)
    neediest = max(vision_bytes, decoder)
    parts = [
        MemoryPart(_BUILD_LINE, int(BUILD_COPIES * neediest), "assumed"),
        MemoryPart("CUDA and TensorRT", OVERHEAD_BYTES, "assumed"),
        MemoryPart("Python process", PROCESS_BYTES, "assumed"),
    ]
    return parts


def largest_part(sizes: Sequence[int], num_parts: int) -> int:
    """The largest of consecutive parts, cut so that it is as small as can be."""
    low, high = max(sizes), sum(sizes)
    while low < high:
        limit = (low + high) // 2
        parts, filled = 1, 0
        for size in sizes:
            if filled + size > limit:
                parts, filled = parts + 1, 0
            filled += size
        low, high = (low, limit) if parts <= num_parts else (limit + 1, high)
    return low


def sum_lines(parts: Sequence[MemoryPart]) -> int:
    """Of all lines."""
    return sum(part.nbytes for part in parts)
