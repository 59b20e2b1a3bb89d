"""Run the ViT over the pictures of requests, and join its visual tokens with their prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..backends.backend import Backend, VisionGraph
from ..inputs.patches import VisualInput
from ..inputs.request import Request
from .generate import DecoderPrompt

# Patches of one ViT call, over all pictures of one size in it: small pictures share a call (and one
# reading of the weights), large ones run alone and bound the memory.
VISION_PATCHES = 4096


def encode_visuals(
    backend: Backend,
    visuals: Sequence[VisualInput],
    hidden_size: int,
    is_cancelled: Callable[[], bool],
) -> list[NDArray[np.float32]]:
    """Run the ViT over pictures and clips, those of one size together.

    Args:
        backend: the engine.
        visuals: of one or many requests.
        hidden_size: D.
        is_cancelled: asked before each call; once True, the rest stays zero.

    Returns:
        For each one its visual tokens, float32[num_tokens, D].
    """
    embeds = [np.zeros((visual.num_tokens, hidden_size), np.float32) for visual in visuals]
    for graph, batch in plan_vision_calls(visuals):
        if is_cancelled():
            return embeds
        results = backend.encode_images(graph, *stack_slices(visuals, batch))
        for (index, t), result in zip(batch, results, strict=True):
            embeds[index][t * len(result) : (t + 1) * len(result)] = result
    return embeds


def plan_vision_calls(
    visuals: Sequence[VisualInput],
) -> Iterator[tuple[VisionGraph, list[tuple[int, int]]]]:
    """The calls of the ViT: each one's graph, and (index of a visual, frame pair) of each row."""
    sizes: dict[tuple[VisionGraph, int, int], list[int]] = {}
    for index, visual in enumerate(visuals):
        graph: VisionGraph = "vision" if visual.kind == "image" else "vision_video"
        sizes.setdefault((graph, visual.grid.h, visual.grid.w), []).append(index)
    for (graph, height, width), indices in sizes.items():
        # A clip is a stack of frame pairs: attention never crosses them, so they are split alike.
        slices = [(index, t) for index in indices for t in range(visuals[index].grid.t)]
        step = max(1, VISION_PATCHES // (height * width))
        for start in range(0, len(slices), step):
            yield graph, slices[start : start + step]


def stack_slices(
    visuals: Sequence[VisualInput], batch: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Stack the slices of one planned call, a row a slice.

    Returns:
        pixel_values: uint8[num_slices, N, 588 or 1176].
        position_ids: int64[num_slices, N, 2].
    """
    return (
        np.stack([visuals[index].pixel_values[t] for index, t in batch]),
        np.stack([visuals[index].position_ids[t] for index, t in batch]),
    )


def make_decoder_prompt(
    request: Request, visual_embeds: Sequence[NDArray[np.float32]], hidden_size: int
) -> DecoderPrompt:
    """Join a request with its encoded pictures.

    Args:
        request: the prompt.
        visual_embeds: of each picture and clip, float32[num_tokens, D].
        hidden_size: D.
    """
    empty = np.empty((0, hidden_size), np.float32)
    return DecoderPrompt(
        input_ids=request.input_ids,
        position_ids=request.position_ids,
        is_visual=request.is_visual,
        visual_embeds=np.concatenate([empty, *visual_embeds]),
    )
