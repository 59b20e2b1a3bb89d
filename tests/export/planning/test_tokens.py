"""Tokens of pictures, clips and prompts: those that the runtime makes of the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.export.planning.tokens import (
    DELIMITERS,
    TEMPLATE_TOKENS,
    count_frames,
    plan_image,
    plan_prompt,
    plan_video,
)
from vlmedge.runtime.bundle.manifest import PixelBudget, TokenIds, VisionSpec
from vlmedge.runtime.inputs.patches import MAX_FRAMES, make_image_input, make_video_input
from vlmedge.runtime.inputs.positions import make_position_ids

VISION = VisionSpec(32, 1280, 16, 14, 2, 2)
# The 2B checkpoint's own limits, and those of the processor's class
WIDE = PixelBudget(56 * 56, 16384 * 28 * 28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
USUAL = PixelBudget(56 * 56, 1280 * 28 * 28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TOKENS = TokenIds(90, 91, 92, 93, (94,), 94)


@pytest.mark.parametrize(
    ("size", "budget", "seen", "num_tokens"),
    [
        ((112, 112), WIDE, (112, 112), 16),
        ((224, 224), WIDE, (224, 224), 64),
        ((448, 448), WIDE, (448, 448), 256),
        ((1920, 1080), WIDE, (1932, 1092), 69 * 39),
        ((1920, 1080), USUAL, (1316, 728), 47 * 26),
        ((4000, 3000), USUAL, (1148, 840), 41 * 30),
    ],
)
def test_pictures_are_seen_as_the_models_authors_see_them(size, budget, seen, num_tokens):
    visual = plan_image(*size, budget, VISION)
    assert (visual.width, visual.height) == seen
    assert visual.num_tokens == num_tokens
    assert visual.num_patches == 4 * num_tokens


@given(st.integers(8, 300), st.integers(8, 300), st.integers(1, 40), st.integers(0, 3))
def test_a_pictures_tokens_are_those_of_the_picture(width, height, tokens, low):
    if max(width, height) > 20 * min(width, height):
        return
    budget = PixelBudget(784 * (1 + low), 784 * (1 + low + tokens), (0.5,) * 3, (0.5,) * 3)
    made = make_image_input(np.zeros((height, width, 3), np.uint8), budget, VISION)
    planned = plan_image(width, height, budget, VISION)
    assert (planned.grid, planned.num_tokens) == (made.grid, made.num_tokens)


@given(st.integers(14, 120), st.integers(14, 120), st.integers(1, 9), st.integers(4, 60))
@settings(max_examples=60)
def test_a_clips_tokens_are_those_of_the_clip(width, height, num_frames, tokens):
    budget = PixelBudget(784, 784 * tokens, (0.5,) * 3, (0.5,) * 3)
    frames = [np.zeros((height, width, 3), np.uint8)] * num_frames
    try:
        made = make_video_input(frames, budget, VISION)
    except ValueError:
        with pytest.raises(ValueError, match="clip has"):
            plan_video(width, height, num_frames, budget, VISION)
        return
    planned = plan_video(width, height, num_frames, budget, VISION)
    assert (planned.grid, planned.num_tokens) == (made.grid, made.num_tokens)


@given(st.integers(28, 4000), st.integers(28, 4000), st.integers(5, 16000), st.integers(1, 3000))
def test_a_larger_budget_is_never_fewer_tokens(width, height, tokens, more):
    if max(width, height) > 100 * min(width, height):
        return
    few = plan_image(width, height, WIDE, VISION, 784 * tokens)
    many = plan_image(width, height, WIDE, VISION, 784 * (tokens + more))
    assert few.num_tokens <= many.num_tokens


def test_a_picture_just_below_the_budget_can_have_more_tokens_than_a_larger_one():
    """Of the rule: what is over the budget is rounded down, what is below it is rounded to nearest.

    So searches go over the budget, not over the picture.
    """
    below, twice = (plan_image(n * 3365, n * 3794, WIDE, VISION) for n in (1, 2))
    assert (below.height, twice.height) == (3808, 3780)


@pytest.mark.parametrize(
    ("seconds", "num_frames"), [(30, 60), (1, 2), (0.1, 2), (1.6, 2), (2.2, 4), (1200, MAX_FRAMES)]
)
def test_clips_are_sampled_twice_a_second_in_pairs(seconds, num_frames):
    assert count_frames(seconds) == num_frames


@pytest.mark.parametrize("num_frames", [0, MAX_FRAMES + 1])
def test_clips_of_no_or_too_many_frames_are_refused(num_frames):
    with pytest.raises(ValueError, match="clip has"):
        plan_video(64, 64, num_frames, WIDE, VISION)


@pytest.mark.parametrize(("side", "num_prompt"), [(448, 283), (1092, 1548)])
def test_a_prompt_has_the_length_that_other_runtimes_counted(side, num_prompt):
    """ "Describe this image in detail." is six tokens; measured with two other runtimes."""
    visual = plan_image(side, side, WIDE, VISION)
    prompt = plan_prompt([visual], 6, 100, None, 32768, VISION)
    assert prompt.num_prompt_tokens == num_prompt
    assert not prompt.is_measured


def test_a_prompt_is_counted_by_the_tokenizer_where_there_is_one():
    visuals = [plan_image(112, 112, WIDE, VISION), plan_video(56, 56, 4, WIDE, VISION)]

    def count(images, videos):
        assert (images, videos) == ([16], [8])
        return 16 + 8 + 33

    prompt = plan_prompt(visuals, 5, 10, None, 32768, VISION, count=count)
    assert prompt.num_overhead_tokens == 33
    assert prompt.is_measured
    assert prompt.num_prompt_tokens == 16 + 8 + 33 + 5
    assert prompt.num_tokens == 16 + 8 + 33 + 5 + 10


@given(st.lists(st.tuples(st.integers(28, 400), st.integers(28, 400)), max_size=4), st.booleans())
def test_the_answer_starts_where_mrope_says(sizes, has_clip):
    visuals = [plan_image(*size, USUAL, VISION) for size in sizes if max(size) < 14 * min(size)]
    if has_clip:
        visuals.append(plan_video(56, 84, 20, USUAL, VISION))
    prompt = plan_prompt(visuals, 7, 10, None, 32768, VISION)
    ids = []
    for visual in visuals:
        pad = TOKENS.image_pad if visual.kind == "image" else TOKENS.video_pad
        ids += [TOKENS.vision_start, *[pad] * visual.num_tokens, TOKENS.vision_end]
    ids += [1] * (TEMPLATE_TOKENS + 7)
    positions = make_position_ids(
        np.array(ids, np.int64),
        [v.grid for v in visuals if v.kind == "image"],
        [v.grid for v in visuals if v.kind == "video"],
        TOKENS,
        2,
        "paper",
    )
    assert len(ids) == prompt.num_prompt_tokens
    assert prompt.next_position == positions.max() + 1
    assert prompt.num_overhead_tokens == TEMPLATE_TOKENS + DELIMITERS * len(visuals)


def test_the_cache_is_as_large_as_asked_or_as_needed_in_steps_of_64():
    visual = plan_image(448, 448, WIDE, VISION)
    assert plan_prompt([visual], 6, 100, None, 32768, VISION).capacity == 384  # 283 + 100
    assert plan_prompt([visual], 6, 100, 4096, 32768, VISION).capacity == 4096


def test_a_context_that_is_too_short_is_a_problem_and_no_error():
    visual = plan_image(448, 448, WIDE, VISION)
    prompt = plan_prompt([visual], 6, 100, 300, 32768, VISION)
    assert prompt.problem is not None
    assert "283" in prompt.problem
    assert plan_prompt([visual], 6, 100, 383, 32768, VISION).problem is None


@pytest.mark.parametrize("context", [0, 32769])
def test_a_context_beyond_the_models_is_refused(context):
    with pytest.raises(ValueError, match="positions end at 32768"):
        plan_prompt([], 6, 100, context, 32768, VISION)


@pytest.mark.parametrize(("text", "new"), [(-1, 1), (0, 0)])
def test_negative_lengths_are_refused(text, new):
    with pytest.raises(ValueError, match="needed at least"):
        plan_prompt([], text, new, None, 32768, VISION)
