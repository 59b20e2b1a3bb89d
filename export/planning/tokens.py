"""Count visual tokens, the prompt's length, its positions and the cache of a request.

Sizes, grids, positions and capacities come from the runtime's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...runtime.backends.kv_cache import plan_capacity, plan_new_tokens
from ...runtime.bundle.manifest import MropeRule, PixelBudget, VisionSpec
from ...runtime.errors import ContextLengthError
from ...runtime.inputs.patches import MAX_FRAMES, Grid, share_budget
from ...runtime.inputs.positions import PositionState
from ...runtime.inputs.resize import make_limits, smart_resize

FRAMES_PER_SECOND = 2  # at which clips are sampled, as the models' authors do
# Of Qwen2-VL's own template: a system turn (11 tokens), the user's turn and the assistant's start
# (8 together), and two delimiters around each picture or clip.
TEMPLATE_TOKENS = 19
DELIMITERS = 2


class PromptCounter(Protocol):
    """Counts a prompt's tokens as the bundle's tokenizer and template write it."""

    def __call__(self, image_tokens: Sequence[int], video_tokens: Sequence[int]) -> int:
        """Tokens of a prompt with these pictures and clips and no text."""
        ...


@dataclass(frozen=True, slots=True)
class Visual:
    """A picture or a clip as the model sees it."""

    kind: str  # "image" or "video"
    width: int  # after resizing, in pixels
    height: int
    grid: Grid
    num_tokens: int

    @property
    def num_patches(self) -> int:
        """Of one slice: attention reaches no further."""
        return self.grid.h * self.grid.w


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """How many tokens a request takes.

    Attributes:
        visuals: pictures, then the clip.
        num_visual_tokens: of all of them.
        num_overhead_tokens: of template and delimiters.
        is_measured: whether they were counted with the model's tokenizer, or by the known template.
        num_text_tokens: of the question.
        num_new_tokens: the longest answer.
        next_position: of the answer's first token, by M-RoPE; below the length with pictures.
        capacity: tokens the cache is made for.
        problem: why prompt and answer don't fit the context; None: they do.
    """

    visuals: tuple[Visual, ...]
    num_visual_tokens: int
    num_overhead_tokens: int
    is_measured: bool
    num_text_tokens: int
    num_new_tokens: int
    next_position: int
    capacity: int
    problem: str | None

    @property
    def num_prompt_tokens(self) -> int:
        """Of the whole prompt."""
        return self.num_visual_tokens + self.num_overhead_tokens + self.num_text_tokens

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer."""
        return self.num_prompt_tokens + self.num_new_tokens


def plan_image(
    width: int,
    height: int,
    pixels: PixelBudget,
    vision: VisionSpec,
    max_pixels: int | None = None,
) -> Visual:
    """A picture of this size.

    Raises:
        ValueError: a size or a limit that makes no sense.
    """
    limits, _ = make_limits(pixels, None, max_pixels)
    return _make_visual("image", width, height, 1, limits, vision)


def plan_video(
    width: int,
    height: int,
    num_frames: int,
    pixels: PixelBudget,
    vision: VisionSpec,
    max_pixels: int | None = None,
    clip_pixels: int | None = None,
) -> Visual:
    """A clip: the budget is shared out among its frame pairs.

    Args:
        width: of a frame.
        height: of a frame.
        num_frames: of the clip.
        pixels: the bundle's budget.
        vision: its constants.
        max_pixels: of a frame, where less is asked for.
        clip_pixels: of all frame pairs together; None: as much as one picture.

    Raises:
        ValueError: too many frames for the budget, or as for a picture.
    """
    budget = share_budget(num_frames, pixels, vision, clip_pixels)
    limits, _ = make_limits(budget, None, max_pixels)
    num_pairs = -(-num_frames // vision.temporal_patch_size)
    return _make_visual("video", width, height, num_pairs, limits, vision)


def count_frames(seconds: float) -> int:
    """Frames of a clip at the usual rate, an even number, at least two and at most 768."""
    return min(MAX_FRAMES, max(2, math.floor(seconds * FRAMES_PER_SECOND) // 2 * 2))


def plan_prompt(
    visuals: Sequence[Visual],
    num_text_tokens: int,
    num_new_tokens: int,
    context: int | None,
    max_positions: int,
    vision: VisionSpec,
    rule: MropeRule = "paper",
    count: PromptCounter | None = None,
) -> PromptPlan:
    """Put a prompt together.

    Args:
        visuals: pictures and clips.
        num_text_tokens: of the question.
        num_new_tokens: of the longest answer.
        context: tokens the cache is made for; None: as many as this request takes.
        max_positions: the model's own limit.
        vision: tells how patches are merged.
        rule: of positions.
        count: how the bundle's tokenizer counts; None: by the known template.

    Raises:
        ValueError: a count that is negative, or a context beyond the model's.
    """
    if num_text_tokens < 0 or num_new_tokens < 1:
        raise ValueError(
            f"question of {num_text_tokens} and answer of {num_new_tokens} tokens, needed at "
            "least 0 and 1"
        )
    if context is not None and not 0 < context <= max_positions:
        raise ValueError(f"context is {context}, the model's positions end at {max_positions}")
    num_visual = sum(visual.num_tokens for visual in visuals)
    if count is None:
        overhead = TEMPLATE_TOKENS + DELIMITERS * len(visuals)
    else:
        images = [v.num_tokens for v in visuals if v.kind == "image"]
        videos = [v.num_tokens for v in visuals if v.kind == "video"]
        overhead = count(images, videos) - num_visual
    num_prompt = num_visual + overhead + num_text_tokens
    problem = None
    try:
        plan_new_tokens(num_prompt, num_new_tokens, context or max_positions)
    except ContextLengthError as error:
        problem = str(error)
    state = PositionState(vision.spatial_merge_size, rule)
    # Where text stands between the blocks does not change where the answer starts.
    for visual in visuals:
        state.append_visual("image" if visual.kind == "image" else "video", visual.grid)
        state.append_text(DELIMITERS)
    state.append_text(overhead + num_text_tokens - DELIMITERS * len(visuals))
    return PromptPlan(
        visuals=tuple(visuals),
        num_visual_tokens=num_visual,
        num_overhead_tokens=overhead,
        is_measured=count is not None,
        num_text_tokens=num_text_tokens,
        num_new_tokens=num_new_tokens,
        next_position=state.next_position,
        capacity=plan_capacity([context or num_prompt + num_new_tokens]),
        problem=problem,
    )


def _make_visual(
    kind: str,
    width: int,
    height: int,
    num_slices: int,
    limits: tuple[int, int],
    vision: VisionSpec,
) -> Visual:
    token_px = vision.patch_size * vision.spatial_merge_size
    rows, columns = smart_resize(height, width, token_px, *limits)
    grid = Grid(num_slices, rows // vision.patch_size, columns // vision.patch_size)
    num_tokens = math.prod(grid) // vision.spatial_merge_size**2
    return Visual(kind, columns, rows, grid, num_tokens)
