"""Decide how much room an answer needs in the KV cache, before anything is allocated.

Prompt length and token limit are known when a request starts, so the cache is made once, in full
size, and never grows or moves: its buffers are bound as past and present of every decoder call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..bundle.generation_defaults import GenerationDefaults
from ..bundle.manifest import VisionSpec
from ..errors import ContextLengthError
from ..options import DEFAULT_MAX_NEW_TOKENS

CAPACITY_STEP = 64  # tokens; capacities are multiples of it
CLIP_SHARE = 0.75  # of a context, the most that one clip may take


@dataclass(frozen=True)
class KvCache:
    """Keys and values of `batch` sequences, each with room for `capacity` tokens.

    Attributes:
        buffers: past name -> the backend's own [batch, num_kv_heads, capacity, head_dim].
        num_bytes: of all buffers; on a CPU pages are only taken when tokens are written.
    """

    batch: int
    capacity: int
    buffers: dict[str, Any]
    num_bytes: int


def plan_new_tokens(
    num_prompt_tokens: int,
    max_new_tokens: int | None,
    context_length: int,
    defaults: GenerationDefaults | None = None,
) -> int:
    """The most tokens an answer may have.

    Args:
        num_prompt_tokens: visual ones included.
        max_new_tokens: as the request names it; None: as the checkpoint does, or 512, as far as
            there is room.
        context_length: for prompt and answer together.
        defaults: the checkpoint's.

    Raises:
        ContextLengthError: the prompt fills the context, or prompt and answer exceed it; or the
            prompt alone is as long as the checkpoint allows both to be.
    """
    room = context_length - num_prompt_tokens
    if room < 1:
        raise ContextLengthError(
            f"the prompt has {num_prompt_tokens} tokens, the model's context holds "
            f"{context_length} with the answer: shorten it or lower max_pixels"
        )
    if max_new_tokens is None:
        return min(_find_default(num_prompt_tokens, defaults), room)
    if max_new_tokens > room:
        raise ContextLengthError(
            f"prompt ({num_prompt_tokens}) and answer ({max_new_tokens}) need "
            f"{num_prompt_tokens + max_new_tokens} tokens, the model's context holds "
            f"{context_length}: ask for at most {room} new tokens, or shorten the prompt"
        )
    return max_new_tokens


def _find_default(num_prompt_tokens: int, defaults: GenerationDefaults | None) -> int:
    if defaults is None or (defaults.max_new_tokens is None and defaults.max_length is None):
        return DEFAULT_MAX_NEW_TOKENS
    if defaults.max_new_tokens is not None:
        return defaults.max_new_tokens
    assert defaults.max_length is not None
    if defaults.max_length <= num_prompt_tokens:
        raise ContextLengthError(
            f"the prompt has {num_prompt_tokens} tokens, and the checkpoint's max_length allows "
            f"{defaults.max_length} with the answer: ask for a number of new tokens"
        )
    return defaults.max_length - num_prompt_tokens


def plan_capacity(num_tokens: Sequence[int]) -> int:
    """Room for the longest of some sequences, prompt and answer together, in whole steps."""
    return -(-max(num_tokens) // CAPACITY_STEP) * CAPACITY_STEP


def limit_clip(max_pixels: int, vision: VisionSpec, positions: int, context: int) -> int:
    """Pixels that the frame pairs of a clip may have together.

    An engine limits one picture, not a clip; but a clip that fills the engine's context leaves no
    room for the question and the answer.

    Args:
        max_pixels: the bundle's budget.
        vision: its constants.
        positions: tokens that the model has positions for.
        context: tokens that the engine takes.
    """
    if context >= positions:
        return max_pixels
    token_area = (vision.patch_size * vision.spatial_merge_size) ** 2
    return min(max_pixels, int(context * CLIP_SHARE) * token_area)
