"""Make the graphs' inputs of examples, with the runtime's own pictures, prompts and positions.

The decoder sees what it will see on a device: real visual tokens in their places, the question, and
behind it the answer where one is known, so that tokens of both phases are calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.backends.cache_mask import make_mask
from ...runtime.bundle.embeddings import Embeddings, scatter_visual_rows
from ...runtime.bundle.manifest import Manifest, TargetRecord
from ...runtime.inputs.request import Request, RequestMaker
from ..data.examples import Example
from .stages import Tensors

VISION_GRAPHS = {"image": "vision", "video": "vision_video"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One example as the host prepares it.

    Attributes:
        example: its id.
        request: token ids, positions and patches.
        answer_ids: int64, of the known answer and the end token; empty where none is known.
    """

    example: str
    request: Request
    answer_ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class VisionFeed:
    """One picture's or clip's inputs of a vision graph.

    Attributes:
        graph: "vision" or "vision_video".
        prompt: index of the prompt it belongs to.
        tensors: pixel_values uint8[T, N, 588 or 1176], position_ids int64[T, N, 2].
    """

    graph: str
    prompt: int
    tensors: Tensors


def make_prompts(folder: Path, manifest: Manifest, examples: Sequence[Example]) -> list[Prompt]:
    """Prepare every example.

    Raises:
        ValueError: an example that doesn't fit the model, by its id.
    """
    maker = RequestMaker(folder, manifest, None)
    prompts = []
    for example in examples:
        try:
            request = maker.make(example.messages)
            answer_ids: list[int] = []
            room = manifest.context_length - len(request.input_ids)
            if example.answers:
                maker.tokenizer.check_length(
                    example.answers[:1], 0, manifest.context_length, name="the answer"
                )
                answer_ids = maker.tokenizer.encode_text(example.answers[0])
                answer_ids.append(manifest.tokens.eos[0])
        except ValueError as error:
            raise ValueError(f"example {example.id}: {error}") from error
        prompts.append(Prompt(example.id, request, np.array(answer_ids[:room], np.int64)))
    return prompts


def make_vision_feeds(prompts: Sequence[Prompt]) -> list[VisionFeed]:
    """The vision graphs' inputs of all pictures and clips, in order."""
    return [
        VisionFeed(
            VISION_GRAPHS[visual.kind],
            index,
            {"pixel_values": visual.pixel_values, "position_ids": visual.position_ids},
        )
        for index, prompt in enumerate(prompts)
        for visual in prompt.request.visuals
    ]


def make_decoder_feed(
    prompt: Prompt, visual_embeds: Sequence[NDArray[np.float32]], embeddings: Embeddings
) -> Tensors:
    """The decoder's inputs of one prompt with its answer, in one call over all positions.

    Args:
        prompt: of L tokens, and A of its answer.
        visual_embeds: float32[..., D] of each of its pictures.
        embeddings: the token table.

    Returns:
        inputs_embeds float32[1, L + A, D], position_ids int64[3, 1, L + A] and the lengths.
    """
    request, size = prompt.request, embeddings.hidden_size
    token_ids = np.concatenate([request.input_ids, prompt.answer_ids])
    embeds = np.empty((len(token_ids), size), np.float32)
    embeddings.gather(token_ids, embeds)
    visual = np.concatenate(
        [np.empty((0, size), np.float32), *(rows.reshape(-1, size) for rows in visual_embeds)]
    )
    scatter_visual_rows(request.is_visual, visual, 0, embeds[: len(request.input_ids)])
    # An answer goes on behind the highest id of its prompt, in all three rows.
    after = request.position_ids.max() + 1 + np.arange(len(prompt.answer_ids))
    positions = np.concatenate([request.position_ids, np.tile(after, (3, 1))], axis=1)
    count = len(token_ids)
    return {
        "inputs_embeds": embeds[None],
        "position_ids": positions[:, None].astype(np.int64),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array(count, np.int32),
        "logit_index": np.array([count - 1], np.int64),
    }


def make_target_feed(target: TargetRecord, num_tokens: int) -> Tensors:
    """What a graph for TensorRT asks for instead of lengths, in one call over an empty cache.

    Args:
        target: the bundle's.
        num_tokens: of the call, S; the cache has room for as many.

    Returns:
        attention_mask bool[1, 1, S, S], or [1, 1, S, 2 S] in append mode, and write_indices.
    """
    starts = np.zeros(1, np.int64)
    mask = make_mask(starts, num_tokens, num_tokens, target.cache)
    return {"attention_mask": mask, "write_indices": starts}
