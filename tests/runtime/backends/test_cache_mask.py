"""Write indices and masks against loops that follow from what a token may look at."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmedge.runtime.backends.cache_mask import make_mask, make_write_indices

MODES = ("in_place", "append")


@st.composite
def draw_calls(draw):
    """Tokens in each row's cache, new tokens of the call, a capacity that holds both."""
    old = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    num_tokens = draw(st.integers(1, 6))
    return old, num_tokens, max(old) + num_tokens + draw(st.integers(0, 4))


def looks(mode, old, token, slot, capacity):
    """By definition: at all of the row's own cached tokens, at itself and at new ones before it."""
    if mode == "in_place":  # new token i lies in slot old + i
        return slot < old or (old <= slot and slot - old <= token)
    if slot < capacity:
        return slot < old
    return slot - capacity <= token


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=50)
@given(call=draw_calls())
def test_a_mask_shows_what_comes_before_and_nothing_else(mode, call):
    old, num_tokens, capacity = call
    mask = make_mask(np.array(old, np.int64), num_tokens, capacity, mode)
    width = capacity + (num_tokens if mode == "append" else 0)
    needed = [
        [[looks(mode, row, token, slot, capacity) for slot in range(width)]]
        for row in old
        for token in range(num_tokens)
    ]
    assert mask.dtype == np.bool_
    assert mask.shape == (len(old), 1, num_tokens, width)
    assert mask.tolist() == np.reshape(needed, mask.shape).tolist()


@settings(deadline=None, max_examples=50)
@given(call=draw_calls())
def test_both_modes_show_the_same_tokens(call):
    # Put the new columns of the appended ones where the other mode has them, and they are equal.
    old, num_tokens, capacity = call
    in_place, append = (make_mask(np.array(old), num_tokens, capacity, mode) for mode in MODES)
    for row, start in enumerate(old):
        joined = append[row, 0, :, :capacity].copy()
        joined[:, start : start + num_tokens] |= append[row, 0, :, capacity:]
        assert joined.tolist() == in_place[row, 0].tolist()


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=50)
@given(call=draw_calls())
def test_every_token_sees_something(mode, call):
    # A row of a softmax that is all shut would be NaN in one engine and an average in another.
    old, num_tokens, capacity = call
    mask = make_mask(np.array(old), num_tokens, capacity, mode)
    assert mask.sum(axis=3).tolist() == [
        [[start + token + 1 for token in range(num_tokens)]] for start in old
    ]


@settings(deadline=None, max_examples=50)
@given(old=st.lists(st.integers(0, 2**31 - 600), min_size=1, max_size=4), new=st.integers(1, 512))
@example(old=[2**31 - 513], new=512)
def test_a_call_writes_behind_what_is_cached(old, new):
    seqlens_k = (np.array(old, np.int64) + new - 1).astype(np.int32)
    starts = make_write_indices(seqlens_k, new)
    assert starts.dtype == np.int64
    assert starts.tolist() == old


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_prompts_padded_on_the_right_all_begin_at_0(lengths):
    seqlens_k = np.array(lengths, np.int32) - 1
    assert make_write_indices(seqlens_k, max(lengths)).tolist() == [0] * len(lengths)


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_no_token_of_a_padded_prompt_sees_padding(mode, lengths):
    longest, capacity = max(lengths), 12
    starts = make_write_indices(np.array(lengths, np.int32) - 1, longest)
    mask = make_mask(starts, longest, capacity, mode)
    first = 0 if mode == "in_place" else capacity
    for row, length in enumerate(lengths):
        seen = mask[row, 0, :length]
        assert not seen[:, first + length :].any()
        assert np.diagonal(seen[:, first : first + length]).all()


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_chunks_of_a_prompt_see_what_they_would_in_one_call(mode, sizes):
    total = sum(sizes)
    capacity = total + 3
    whole = make_mask(np.zeros(1, np.int64), total, capacity, "in_place")[0, 0]
    done = 0
    for size in sizes:
        starts = make_write_indices(np.array([done + size - 1], np.int32), size)
        mask = make_mask(starts, size, capacity, mode)[0, 0]
        seen = mask[:, :capacity].copy()
        if mode == "append":
            seen[:, done : done + size] |= mask[:, capacity:]
        assert seen.tolist() == whole[done : done + size].tolist()
        done += size
    assert done == total


def test_a_decoding_step_sees_one_token_more_than_is_cached():
    starts = make_write_indices(np.array([4, 0, 2], np.int32), 1)
    assert starts.tolist() == [4, 0, 2]
    assert make_mask(starts, 1, 6, "in_place")[:, 0, 0].astype(int).tolist() == [
        [1, 1, 1, 1, 1, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
    ]
    assert make_mask(starts, 1, 6, "append")[:, 0, 0].astype(int).tolist() == [
        [1, 1, 1, 1, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 0, 1],
    ]
