"""Answers of engines: the same tokens as ONNX Runtime's own graphs give, by other means."""

import gc
import json
import shutil
import weakref

import numpy as np
import pytest

from vlmedge.runtime import GenerationOptions
from vlmedge.runtime.errors import BackendError, BundleError, ContextLengthError
from vlmedge.runtime.trt.engine_set import ENGINE_SET_NAME

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


def test_half_precision_moves_rows_of_half_the_size(make_twin, open_fake, reference, target):
    """ONNX Runtime computes it in float32 between casts: numbers are near, not equal."""
    half = open_fake(make_twin(target, dtype="fp16", context=1024, cuts=(0.5,)))
    assert read_logits(half.model) == pytest.approx(read_logits(reference), abs=0.02)


def read_logits(model):
    """Logits of five steps over the same tokens."""
    backend = model._engine._backend
    cache = backend.make_cache(1, 64)
    rng = np.random.default_rng(5)
    rows = []
    for start, num_tokens in ((0, 9), (9, 1), (10, 1), (11, 1), (12, 1)):
        call = backend.bind_decoder(cache, num_tokens)
        call.inputs_embeds[...] = rng.normal(0, 0.5, call.inputs_embeds.shape)
        call.position_ids[...] = start + np.arange(num_tokens)
        call.seqlens_k[...] = start + num_tokens - 1
        call.total_sequence_length[...] = start + num_tokens
        call.logit_index[...] = num_tokens - 1
        rows.append(call.run().copy())
    return np.concatenate(rows)


def test_logits_are_those_of_onnx_runtime(make_twin, open_fake, reference, target):
    model = open_fake(make_twin(target, context=1024)).model
    assert read_logits(model) == pytest.approx(read_logits(reference), abs=2e-5)


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


def test_a_tensorrt_that_refuses_recording_is_not_asked_again(make_twin, open_fake, reference):
    opened = open_fake(make_twin(APPEND), can_capture=False)
    for _ in range(2):
        got = opened.model.answer("What is it?", options=OPTIONS)
        assert got.token_ids == reference.answer("What is it?", options=OPTIONS).token_ids
    assert "begin_capture" not in opened.driver.calls
    assert len(opened.backend.notices) == 1


def test_residency_one_frees_vision_before_the_decoder_is_loaded(make_twin, open_fake, reference):
    opened = open_fake(make_twin(APPEND), residency="one")
    alive, seen = [], []

    def load(data, where, inner=opened.backend._loader):
        seen.append([ref() for ref in alive if ref() is not None])
        engine = inner(data, where)
        alive.append(weakref.ref(engine))
        return engine

    opened.backend._loader = load
    for _ in range(2):
        got = opened.model.answer("What is it?", [draw(0)], options=OPTIONS)
        needed = reference.answer("What is it?", [draw(0)], options=OPTIONS)
        assert got.token_ids == needed.token_ids
    assert seen == [[], [], [], []]
    assert opened.loader.loaded == ["vision.0.engine", "decoder.0.engine"] * 2


def test_residency_all_loads_each_engine_once(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND, cuts=(0.5,)))
    for _ in range(2):
        opened.model.answer("What is it?", [draw(0)], options=OPTIONS)
    assert sorted(opened.loader.loaded) == [
        "decoder.0.engine",
        "decoder.1.engine",
        "vision.0.engine",
    ]
    assert opened.backend.load_s > 0


def test_all_engines_compute_in_one_block_of_scratch(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND, cuts=(0.5,)))
    opened.model.answer("What is it?", [draw(0)], options=OPTIONS)
    chains = opened.backend._chains.values()
    blocks = {bound.context.scratch for chain in chains for bound in chain._contexts.values()}
    places = {address for address, _ in blocks}
    needed = max(
        bound.context.engine.measure_scratch(bound.profile)
        for chain in chains
        for bound in chain._contexts.values()
    )
    assert opened.backend._scratch.num_bytes == needed
    assert opened.backend._scratch.address in places


@pytest.mark.parametrize("residency", ["all", "one"])
def test_everything_is_given_back(make_twin, open_fake, target, residency):
    opened = open_fake(make_twin(target, context=1024), residency=residency)
    opened.model.answer("What is it?", [draw(0)], options=OPTIONS)
    stream = opened.model.stream(say("Hi"), OPTIONS)
    next(stream)
    stream.close()
    opened.model.close()
    gc.collect()
    assert opened.driver.blocks == {}
    assert opened.driver.graphs == {}


def test_nothing_is_lost_in_garbage_collection(make_twin, open_fake):
    """Memory must go when its owner goes: the collector may come while a stream is recorded."""
    opened = open_fake(make_twin(APPEND))
    gc.disable()
    try:
        opened.model.answer("What is it?", [draw(0)], options=OPTIONS)
        after_one = len(opened.driver.blocks)
        opened.model.answer("What is it?", [draw(0)], options=OPTIONS)
        assert len(opened.driver.blocks) == after_one
    finally:
        gc.enable()


def test_a_call_after_the_engines_were_freed_is_told_so(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND))
    cache = opened.backend.make_cache(1, 64)
    call = opened.backend.bind_decoder(cache, 1)
    opened.backend.close()
    with pytest.raises(BackendError, match="bind the decoder again"):
        call.run()
    opened.backend.bind_decoder(cache, 1).run()


def test_an_engine_of_another_hash_is_never_deserialized(make_twin, open_fake, tmp_path):
    bundle = shutil.copytree(make_twin(APPEND), tmp_path / "bundle")
    path = bundle / "engines" / "fake" / "decoder.0.engine"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    opened = open_fake(bundle)
    with pytest.raises(BundleError, match=r"SHA-256.*not loaded.*`vlmedge build bundle`"):
        opened.model.answer("What is it?", options=OPTIONS)
    assert opened.loader.loaded == []


def test_an_engine_of_other_inputs_than_recorded_is_told(make_twin, open_fake, tmp_path):
    bundle = shutil.copytree(make_twin(APPEND), tmp_path / "bundle")
    path = bundle / "engines" / "fake" / ENGINE_SET_NAME
    raw = json.loads(path.read_text())
    outputs = raw["chains"]["decoder"][0]["outputs"]
    next(output for output in outputs if output["name"] == "logits")["dtype"] = "float16"
    path.write_text(json.dumps(raw))
    with pytest.raises(BackendError, match=r"has logits as float32, its record as float16"):
        open_fake(bundle).model.answer("What is it?", options=OPTIONS)


def test_a_picture_beyond_the_engines_is_told_with_both_ways_out(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND, max_pixels=100352))
    with pytest.raises(BackendError) as error:
        opened.model.answer("?", [draw(0, 560, 560)], options=OPTIONS)
    assert "1600 patches (313600 pixels)" in str(error.value)
    assert "max_pixels=100352" in str(error.value)
    assert "`vlmedge build bundle --max-pixels 313600`" in str(error.value)
    got = opened.model.answer("?", [draw(0, 560, 560)], options=OPTIONS, max_pixels=100352)
    assert got.num_image_tokens <= 128
    assert "vision.0.engine" in opened.loader.loaded


def test_a_batch_beyond_the_engines_is_told(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND, max_batch=2))
    with pytest.raises(BackendError, match=r"3 sequences.*at most 2.*--max-batch 3"):
        opened.model.chat_batch([say("Hi")] * 3, OPTIONS)


def test_a_context_beyond_the_engines_is_told(make_twin, open_fake, target):
    needed = {
        APPEND: r"320 tokens.*at most 256: .*`vlmedge build bundle --context 320`",
        IN_PLACE: r"320 tokens.*at most 256: .*export it again with --context 320",
    }
    opened = open_fake(make_twin(target, context=256))
    with pytest.raises(ContextLengthError, match=needed[target]):
        opened.backend.make_cache(1, 320)


def test_rounding_up_does_not_make_a_cache_larger_than_the_engines(make_twin, open_fake):
    opened = open_fake(make_twin(IN_PLACE, context=1000))
    assert opened.backend.make_cache(1, 1024).capacity == 1000
    with pytest.raises(ContextLengthError):
        opened.backend.make_cache(1, 1088)


def test_tokens_beyond_the_cache_are_never_written(make_twin, open_fake, target):
    opened = open_fake(make_twin(target, context=1024))
    cache = opened.backend.make_cache(1, 64)
    call = opened.backend.bind_decoder(cache, 5)
    call.seqlens_k[...] = cache.capacity
    with pytest.raises(BackendError, match="don't fit a cache"):
        call.run()


def test_a_cache_beyond_the_memory_is_told(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND, context=1024))
    opened.driver.total_bytes = 1 << 16
    with pytest.raises(BackendError, match="no memory for a cache of 1 x 1024 tokens"):
        opened.backend.make_cache(1, 1024)


def test_a_row_of_a_batch_leaves_the_others_alone(make_twin, open_fake, target):
    opened = open_fake(make_twin(target, max_batch=3, context=1024))
    cache = opened.backend.make_cache(3, 64)
    tensors = list(cache.buffers.values())
    num_bytes = cache.num_bytes // len(tensors)

    def read():
        views = [opened.driver.view(tensor.address, num_bytes).copy() for tensor in tensors]
        return np.stack(views).view(np.float32).reshape(len(tensors), 3, -1, cache.capacity, 16)

    call = opened.backend.bind_decoder(cache, 5, row=1)
    call.inputs_embeds[...] = 1.0
    for stop in (5, 10):
        call.seqlens_k[...] = stop - 1
        call.run()
    values = read()
    assert not values[:, [0, 2]].any()
    assert values[:, 1, :, :10].all()
    assert not values[:, 1, :, 10:].any()


def test_where_it_runs_is_said(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND))
    assert opened.model.providers == ("TensorRT 10.3.0 on Fake, sm 8.7",)
