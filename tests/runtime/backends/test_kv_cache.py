import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.runtime.backends.kv_cache import (
    CAPACITY_STEP,
    limit_clip,
    plan_capacity,
    plan_new_tokens,
)
from vlmedge.runtime.bundle.generation_defaults import GenerationDefaults
from vlmedge.runtime.bundle.manifest import VisionSpec
from vlmedge.runtime.errors import ContextLengthError


@given(prompt=st.integers(1, 200), limit=st.none() | st.integers(1, 200))
def test_a_plan_never_leaves_the_context(prompt, limit):
    try:
        planned = plan_new_tokens(prompt, limit, 100)
    except ContextLengthError:
        assert prompt + (limit or 1) > 100
    else:
        assert prompt + planned <= 100
        assert planned == (limit or 100 - prompt)


def test_an_answer_that_does_not_fit_says_what_was_got_and_needed():
    with pytest.raises(ContextLengthError, match=r"90.*20.*need 110.*100.*at most 10"):
        plan_new_tokens(90, 20, 100)
    with pytest.raises(ContextLengthError, match=r"prompt has 100 tokens.*100"):
        plan_new_tokens(100, None, 100)


@pytest.mark.parametrize(
    ("defaults", "planned"),
    [
        ({}, 512),
        ({"max_new_tokens": 7}, 7),
        ({"max_new_tokens": 10**6}, 900),  # as far as there is room
        ({"max_length": 130}, 30),
        ({"max_length": 130, "max_new_tokens": 9}, 9),
    ],
)
def test_the_checkpoints_length_is_that_of_a_request_that_names_none(defaults, planned):
    assert plan_new_tokens(100, None, 1000, GenerationDefaults(**defaults)) == planned
    assert plan_new_tokens(100, 3, 1000, GenerationDefaults(**defaults)) == 3


def test_a_prompt_as_long_as_the_checkpoint_allows_with_its_answer_is_refused():
    with pytest.raises(ContextLengthError, match=r"max_length allows 100.*number of new tokens"):
        plan_new_tokens(100, None, 1000, GenerationDefaults(max_length=100))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_capacity_holds_the_longest_and_wastes_less_than_a_step(needed):
    capacity = plan_capacity(needed)
    assert capacity % CAPACITY_STEP == 0
    assert 0 <= capacity - max(needed) < CAPACITY_STEP


def test_a_clip_leaves_room_in_an_engines_context():
    vision = VisionSpec(2, 32, 2, 14, 2, 2)
    assert limit_clip(1000 * 784, vision, 32768, 32768) == 1000 * 784
    assert limit_clip(1000 * 784, vision, 32768, 4096) == 1000 * 784
    assert limit_clip(16384 * 784, vision, 32768, 4096) == 3072 * 784
