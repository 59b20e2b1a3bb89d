"""Answers of engines: the same tokens as ONNX Runtime's own graphs give, by other means."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmedge.runtime import GenerationOptions
from vlmedge.runtime.errors import BackendError

APPEND, IN_PLACE = "jetpack-6.2", "tensorrt-11"
OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)
# Random weights like to repeat themselves: what was said may not be said again.
VARIED = GenerationOptions(max_new_tokens=12, ignore_eos=True, repetition_penalty=5.0)
LONG = "the total of the receipt is 12.50 " * 19  # over one prefill call


def draw(seed, height=60, width=90):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def say(text, *images):
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


@pytest.fixture(params=[APPEND, IN_PLACE])
def target(request):
    return request.param


@pytest.mark.parametrize("cuts", [(), (0.5,), (0.15, 0.4, 0.9)])
def test_one_question_gets_the_tokens_of_onnx_runtime(
    make_twin, open_fake, reference, target, cuts
):
    opened = open_fake(make_twin(target, cuts=cuts, context=1024))
    for images in ([draw(0)], [draw(1), draw(2)], []):
        got = opened.model.answer("What is it?", images, options=VARIED)
        needed = reference.answer("What is it?", images, options=VARIED)
        assert got.token_ids == needed.token_ids
        assert len(set(got.token_ids)) > 6
        assert got.num_image_tokens == needed.num_image_tokens


@pytest.mark.parametrize("parts", [{"split": 2}, {"split": 2, "separate_lm_head": True}])
def test_the_parts_that_the_builder_makes_are_one_decoder(
    make_twin, open_fake, reference, target, parts
):
    opened = open_fake(make_twin(target, context=1024, max_batch=2, prefill_tokens=64, **parts))
    conversations = [say("Hi"), say("What is the total of the receipt?", draw(0))]
    got = opened.model.chat_batch(conversations, VARIED)
    needed = reference.chat_batch(conversations, VARIED)
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in needed]
    decoders = [file for file in opened.loader.loaded if file.startswith("decoder")]
    assert len(decoders) == sum(parts.values())


def test_a_batch_of_ragged_prompts_gets_each_ones_own_answer(
    make_twin, open_fake, reference, target
):
    opened = open_fake(make_twin(target, max_batch=4, context=1024))
    conversations = [
        say("Hi"),
        say("What is the total of the receipt?", draw(0)),
        say("image_pad", draw(1), draw(2, 30, 30)),
        say(""),
    ]
    limits = [GenerationOptions(max_new_tokens=n, ignore_eos=True) for n in (9, 3, 6, 1)]
    got = opened.model.chat_batch(conversations, limits)
    needed = reference.chat_batch(conversations, limits)
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in needed]


@given(data=st.data())
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_batch_gets_the_tokens_of_onnx_runtime(make_twin, open_fake, reference, target, data):
    """Lengths of prompts and answers, parts of a prompt: whatever comes together."""
    prefill_tokens = data.draw(st.sampled_from([512, 16, 5]))
    opened = open_fake(make_twin(target, max_batch=3, context=1024, prefill_tokens=prefill_tokens))
    batch = data.draw(st.integers(1, 3))
    conversations = [say("total 1 2 " * data.draw(st.integers(0, 8))) for _ in range(batch)]
    limits = [
        GenerationOptions(max_new_tokens=data.draw(st.integers(1, 6)), ignore_eos=True)
        for _ in range(batch)
    ]
    got = opened.model.chat_batch(conversations, limits)
    needed = reference.chat_batch(conversations, limits)
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in needed]


@pytest.mark.parametrize("prefill_tokens", [512, 100])
def test_long_prompts_go_in_chunks_one_sequence_at_a_time(
    make_twin, open_fake, reference, target, prefill_tokens
):
    bundle = make_twin(
        target, max_batch=2, context=1024, prefill_tokens=prefill_tokens, cuts=(0.5,)
    )
    opened = open_fake(bundle)
    conversations = [say(LONG, draw(3)), say(f"{LONG} and more", draw(4, 300, 200))]
    got = opened.model.chat_batch(conversations, VARIED)
    needed = reference.chat_batch(conversations, VARIED)
    assert min(answer.num_prompt_tokens for answer in got) > 512
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in needed]


def test_a_ragged_batch_is_split_where_the_profile_is_small(
    make_twin, open_fake, reference, target
):
    """The last token of a short prompt is in another part than that of a long one."""
    bundle = make_twin(target, max_batch=3, context=1024, prefill_tokens=7)
    conversations = [say("Hi"), say("the total of the receipt is 12.50"), say("a b c d")]
    got = open_fake(bundle).model.chat_batch(conversations, OPTIONS)
    needed = reference.chat_batch(conversations, OPTIONS)
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in needed]


def test_half_precision_moves_rows_of_half_the_size(
    make_twin, open_fake, reference, target, read_logits
):
    """ONNX Runtime computes it in float32 between casts: numbers are near, not equal."""
    half = open_fake(make_twin(target, dtype="fp16", context=1024, cuts=(0.5,)))
    assert read_logits(half.backend) == pytest.approx(
        read_logits(reference._engine._backend), abs=0.02
    )


def test_logits_are_those_of_onnx_runtime(make_twin, open_fake, reference, target, read_logits):
    opened = open_fake(make_twin(target, context=1024))
    assert read_logits(opened.backend) == pytest.approx(
        read_logits(reference._engine._backend), abs=2e-5
    )


def test_clips_are_encoded_by_a_graph_of_their_own(make_twin, open_fake, reference):
    opened = open_fake(make_twin(APPEND, video=True, max_images=2))
    videos = [[draw(seed, 56, 56) for seed in range(6)]]
    got = opened.model.answer("What happens?", videos=videos, options=OPTIONS)
    assert got.token_ids == reference.answer("?", videos=videos, options=OPTIONS).token_ids or (
        got.token_ids == reference.answer("What happens?", videos=videos, options=OPTIONS).token_ids
    )
    assert any(file.startswith("vision_video") for file in opened.loader.loaded)


def test_engines_built_without_clips_say_how_to_get_them(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND))
    with pytest.raises(BackendError, match=r"lack the vision_video.*vlmedge build bundle --video"):
        opened.model.answer("?", videos=[[draw(0)]], options=OPTIONS)


def test_pictures_beyond_the_profile_take_several_runs(make_twin, open_fake, reference):
    opened = open_fake(make_twin(APPEND, max_images=2))
    pictures = [draw(seed) for seed in range(5)]
    got = opened.model.answer("?", pictures, options=OPTIONS)
    assert got.token_ids == reference.answer("?", pictures, options=OPTIONS).token_ids
    backend, other = opened.backend, reference._engine._backend
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 588), np.uint8)
    positions = np.tile(np.indices((4, 4)).reshape(2, 16).T, (5, 1, 1))
    calls = opened.driver.calls.count("copy_to_host")
    embeds = backend.encode_images("vision", pixels, positions)
    assert opened.driver.calls.count("copy_to_host") - calls == 3
    assert embeds == pytest.approx(other.encode_images("vision", pixels, positions), abs=1e-5)


def test_each_picture_runs_in_the_smallest_profile_that_holds_it(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND))
    (record,) = opened.backend._chosen.engine_set.chains["vision"]
    limits = [profile.shapes["pixel_values"].max[1] for profile in record.profiles]
    assert len(limits) > 2
    for index, most in enumerate(limits[:3]):
        least = 4 if index == 0 else limits[index - 1] + 4
        for num_patches in (least, most):
            pixels = np.zeros((1, num_patches, 588), np.uint8)
            opened.backend.encode_images("vision", pixels, np.zeros((1, num_patches, 2), np.int64))
            chain = opened.backend.load("vision")
            assert chain._contexts["vision", 0].context.profile == index


def test_only_embeddings_and_logits_come_back(make_twin, open_fake, target):
    opened = open_fake(make_twin(target, context=1024))
    opened.model.answer("?", [draw(0)], options=OPTIONS)
    assert opened.driver.calls.count("copy_to_host") == 1 + 1 + 2  # vision, prefill, two as it is
    assert opened.driver.calls.count("launch") == OPTIONS.max_new_tokens - 2


def test_an_empty_cache_is_shown_as_one_token_to_a_graph_that_appends(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND))
    cache = opened.backend.make_cache(1, 128)
    call = opened.backend.bind_decoder(cache, 5)
    seen = []
    for seqlens in (4, 9):
        call.seqlens_k[...] = seqlens
        call.run()
        context = opened.backend.load("decoder")._contexts["prefill", 0].context
        seen.append(context.shapes["past_key_values.0.key"][2])
        assert context.shapes["attention_mask"][3] == seen[-1] + 5
    assert seen == [1, 128]


def test_decoding_is_recorded_once_an_answer(make_twin, open_fake, target):
    opened = open_fake(make_twin(target, context=1024))
    for number in (1, 2):
        opened.model.answer("?", options=OPTIONS)
        assert opened.driver.calls.count("end_capture") == number
    assert opened.driver.graphs == {}
    assert opened.backend.notices == ()


@pytest.mark.parametrize("call", ["begin_capture", "end_capture"])
def test_where_recording_fails_answers_are_the_same_and_it_is_said_once(
    make_twin, open_fake, reference, target, call
):
    opened = open_fake(make_twin(target, context=1024))
    opened.driver.refuse.add(call)
    for _ in range(2):
        got = opened.model.answer("What is it?", [draw(0)], options=VARIED)
        needed = reference.answer("What is it?", [draw(0)], options=VARIED)
        assert got.token_ids == needed.token_ids
    (notice,) = opened.backend.notices
    assert notice.startswith("decoding runs without a CUDA graph")
    assert call in notice
    assert opened.driver.calls.count("launch") == 0


def test_a_tensorrt_that_refuses_recording_is_not_asked_for_ever(make_twin, open_fake, reference):
    opened = open_fake(make_twin(APPEND), can_capture=False)
    for _ in range(2):
        got = opened.model.answer("What is it?", options=OPTIONS)
        assert got.token_ids == reference.answer("What is it?", options=OPTIONS).token_ids
    assert "begin_capture" not in opened.driver.calls
    assert len(opened.backend.notices) == 1
