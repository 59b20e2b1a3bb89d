"""M-RoPE ids against golden prompts and transformers, and the growing state against both: equal."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlmedge.runtime.bundle.manifest import TokenIds
from vlmedge.runtime.errors import PromptError
from vlmedge.runtime.inputs.patches import Grid
from vlmedge.runtime.inputs.positions import PositionState, make_position_ids

GOLDEN = Path(__file__).parents[2] / "golden" / "mrope_paper_rule.json"
TOKENS = TokenIds(151652, 151653, 151655, 151656, (151645,), 151643)
RULES = ("paper", "transformers>=5.3")

# A prompt is a list of pieces: a number of text tokens, or the merged (t, h, w) of a visual.
texts = st.integers(1, 6)
images = st.tuples(st.just(1), st.integers(1, 5), st.integers(1, 5))
videos = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4))
short_videos = videos.filter(lambda size: size[0] <= max(size[1:]))


def prompts(clips):
    visuals = st.one_of(
        images.map(lambda size: ("image", size)), clips.map(lambda size: ("video", size))
    )
    return st.lists(st.one_of(texts.map(lambda n: ("text", n)), visuals), max_size=8)


def grid_of(size):
    return Grid(size[0], size[1] * 2, size[2] * 2)


def spell(pieces):
    """Token ids and grids of a prompt."""
    ids, grids = [], {"image": [], "video": []}
    for kind, what in pieces:
        if kind == "text":
            ids += [5] * what
        else:
            pad = TOKENS.image_pad if kind == "image" else TOKENS.video_pad
            ids += [pad] * int(np.prod(what))
            grids[kind].append(grid_of(what))
    return np.array(ids, np.int64), grids["image"], grids["video"]


def make_ids(pieces, rule="paper"):
    return make_position_ids(*spell(pieces), TOKENS, 2, rule)


def grow(pieces, rule):
    state = PositionState(2, rule)
    for piece in pieces:
        append(state, piece)
    return state


def append(state, piece):
    kind, what = piece
    if kind == "text":
        state.append_text(what)
    elif kind == "image":
        state.append_image(grid_of(what))
    else:
        state.append_video(grid_of(what))


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()))
def test_ids_are_the_recorded_ones_of_the_papers_rule(case):
    ids = make_position_ids(
        np.array(case["ids"]),
        [Grid(*grid) for grid in case["image_grid_thw"]],
        [Grid(*grid) for grid in case["video_grid_thw"]],
        TOKENS,
        2,
        "paper",
    )
    assert ids.dtype == np.int64
    assert ids.tolist() == case["positions"]


def token_by_token(pieces):
    """The paper's rule in its own words, one token at a time."""
    columns, position = [], 0
    for kind, what in pieces:
        if kind == "text":
            columns += [(position + i,) * 3 for i in range(what)]
        else:
            columns += [tuple(position + i for i in place) for place in np.ndindex(*what)]
        position = max(map(max, columns)) + 1
    return np.array(columns, np.int64).reshape(-1, 3).T


@given(prompts(videos))
@settings(max_examples=200, deadline=None)
def test_ids_follow_the_papers_rule_in_any_mixture(pieces):
    assert np.array_equal(make_ids(pieces), token_by_token(pieces))


@pytest.fixture(scope="module")
def get_rope_index():
    """transformers' function, with no more of a model than it reads."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
    from types import MethodType, SimpleNamespace

    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    )
    cls = modeling.Qwen2VLModel
    model.get_vision_position_ids = MethodType(cls.get_vision_position_ids, model)

    def call(input_ids, image_grids, video_grids):
        types = (input_ids == TOKENS.image_pad) + 2 * (input_ids == TOKENS.video_pad)
        position_ids, _ = cls.get_rope_index(
            model,
            torch.from_numpy(input_ids)[None],
            torch.from_numpy(types)[None],
            torch.tensor(image_grids) if image_grids else None,
            torch.tensor(video_grids) if video_grids else None,
        )
        return position_ids[:, 0].numpy()

    return call


def reads_in_transformers(pieces):
    """Its rule needs tokens, and something between two blocks of one kind."""
    kinds = [kind for kind, _ in pieces]
    return kinds and all(a != b or a == "text" for a, b in pairwise(kinds))


@given(pieces=prompts(short_videos))
@settings(max_examples=150, deadline=None)
def test_the_papers_rule_equals_transformers_for_images_and_short_clips(get_rope_index, pieces):
    assume(reads_in_transformers(pieces))
    assert np.array_equal(make_ids(pieces), get_rope_index(*spell(pieces)))


@given(pieces=prompts(videos))
@settings(max_examples=150, deadline=None)
def test_the_other_rule_equals_transformers_for_every_clip(get_rope_index, pieces):
    assume(reads_in_transformers(pieces))
    assert np.array_equal(make_ids(pieces, "transformers>=5.3"), get_rope_index(*spell(pieces)))


def test_the_rules_part_after_a_clip_with_more_frame_pairs_than_rows_and_columns():
    pieces = [("text", 3), ("video", (10, 2, 2)), ("text", 3)]
    assert make_ids(pieces)[:, -3:].tolist() == [[13, 14, 15]] * 3
    assert make_ids(pieces, "transformers>=5.3")[:, -3:].tolist() == [[5, 6, 7]] * 3


def test_a_prompt_without_tokens_has_no_ids():
    assert make_ids([]).shape == (3, 0)


@given(prompts(videos), st.sampled_from(RULES))
@settings(max_examples=150, deadline=None)
def test_the_state_equals_the_whole_prompt_at_once(pieces, rule):
    state = grow(pieces, rule)
    expected = make_ids(pieces, rule)
    assert np.array_equal(state.position_ids, expected)
    assert state.length == expected.shape[1]
    assert state.next_position == expected.max(initial=-1) + 1


@given(prompts(videos), prompts(videos), st.sampled_from(RULES), st.data())
@settings(max_examples=150, deadline=None)
def test_rewound_between_pieces_the_state_equals_a_fresh_one(before, after, rule, data):
    count = data.draw(st.integers(0, len(before)))
    state = grow(before, rule)
    state.rewind(grow(before[:count], rule).length)
    for piece in after:
        append(state, piece)
    expected = make_ids(before[:count] + after, rule)
    assert np.array_equal(state.position_ids, expected)
    assert state.next_position == expected.max(initial=-1) + 1


@given(prompts(videos), st.sampled_from(RULES), st.data())
@settings(max_examples=200, deadline=None)
def test_rewound_to_any_token_the_rest_keeps_its_ids_and_text_goes_on_after_them(
    pieces, rule, data
):
    state = grow(pieces, rule)
    whole = state.position_ids
    length = data.draw(st.integers(0, whole.shape[1]))
    state.rewind(length)
    kept = whole[:, :length]
    assert np.array_equal(state.position_ids, kept)
    assert state.next_position == kept.max(initial=-1) + 1
    state.append_text(2)
    if rule == "paper":
        following = np.tile(kept.max(initial=-1) + 1 + np.arange(2), (3, 1))
        assert np.array_equal(state.position_ids[:, length:], following)


@given(prompts(videos), st.lists(st.integers(0, 400), min_size=2, max_size=2).map(sorted))
@settings(max_examples=150, deadline=None)
def test_ids_of_a_range_are_that_part_of_all_ids(pieces, limits):
    state = grow(pieces, "paper")
    start, stop = (min(limit, state.length) for limit in limits)
    assert np.array_equal(state.make_ids(start, stop), state.position_ids[:, start:stop])


@given(prompts(videos), prompts(videos), prompts(videos), st.sampled_from(RULES))
@settings(max_examples=100, deadline=None)
def test_forks_do_not_see_each_other(shared, first, second, rule):
    state = grow(shared, rule)
    twin = state.fork()
    for piece in first:
        append(state, piece)
    for piece in second:
        append(twin, piece)
    assert np.array_equal(state.position_ids, make_ids(shared + first, rule))
    assert np.array_equal(twin.position_ids, make_ids(shared + second, rule))
    twin.rewind(0)
    assert np.array_equal(state.position_ids, make_ids(shared + first, rule))


@given(prompts(videos), st.sampled_from(RULES))
@settings(max_examples=100, deadline=None)
def test_an_answer_goes_on_after_the_highest_id_under_either_rule(pieces, rule):
    state = grow(pieces, rule)
    start, first = state.length, state.next_position
    for _ in range(3):
        state.append_answer(1)
    assert state.position_ids[:, start:].tolist() == [[first, first + 1, first + 2]] * 3


@pytest.mark.parametrize(
    ("ids", "image_grids", "video_grids", "message"),
    [
        ([1, 151655, 151655], [], [], "2 image pads, the 0 image grids .* need 0"),
        ([1, 151655, 151655], [(1, 2, 6)], [], "2 image pads, the 1 image grids .* need 3"),
        ([1, 151655, 151655], [(1, 2, 2)], [], "2 image pads, the 1 image grids .* need 1"),
        ([151655, 1, 151655], [(1, 2, 4)], [], "without other tokens in between"),
        ([1, 2], [(1, 2, 4)], [], "0 image pads, the 1 image grids"),
        ([1, 2], [], [(2, 2, 4)], "0 video pads, the 1 video grids"),
        ([151656] * 4, [(2, 2, 4)], [], "4 video pads, the 0 video grids"),
        ([151655, 151656], [(1, 2, 4)], [(1, 2, 2)], "1 image pads, the 1 image grids"),
    ],
)
def test_pads_that_do_not_match_the_grids_are_an_error(ids, image_grids, video_grids, message):
    with pytest.raises(PromptError, match=message):
        make_position_ids(np.array(ids), image_grids, video_grids, TOKENS, 2, "paper")


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 5), (0, 4, 4), (1, 0, 4), (1, -2, -2)])
def test_a_grid_that_can_not_be_merged_is_refused(grid):
    with pytest.raises(ValueError, match="multiples of 2"):
        PositionState(2, "paper").append_video(Grid(*grid))
    with pytest.raises(ValueError, match="multiples of 2"):
        make_position_ids(np.array([151655]), [grid], [], TOKENS, 2, "paper")


def test_an_image_of_several_frames_is_refused():
    with pytest.raises(ValueError, match="an image has 1"):
        PositionState(2, "paper").append_image(Grid(2, 4, 4))


@pytest.mark.parametrize("array", [np.zeros((1, 3), np.int64), np.zeros(3, np.float32)])
def test_ids_that_are_no_vector_of_integers_are_refused(array):
    with pytest.raises(ValueError, match="needed integers"):
        make_position_ids(array, [], [], TOKENS, 2, "paper")


def test_what_makes_no_sense_to_a_state_is_refused():
    with pytest.raises(ValueError, match="M-RoPE rule is 'mine'"):
        PositionState(2, "mine")
    with pytest.raises(ValueError, match="merge_size is 0"):
        PositionState(0, "paper")
    state = PositionState(2, "paper")
    with pytest.raises(ValueError, match="can't append -1"):
        state.append_text(-1)
    for length in (-1, 1):
        with pytest.raises(ValueError, match="can't rewind 0 tokens"):
            state.rewind(length)
    with pytest.raises(ValueError, match="tokens 0 to 1 are not within"):
        state.make_ids(0, 1)
