"""What the backend holds and gives back, and what it says where a request doesn't fit."""

import gc
import json
import shutil
import weakref

import numpy as np
import pytest

from vlmedge.runtime import GenerationOptions
from vlmedge.runtime.backends.trt.engine_set import ENGINE_SET_NAME
from vlmedge.runtime.errors import BackendError, BundleError, ContextLengthError

APPEND, IN_PLACE = "jetpack-6.2", "tensorrt-11"
OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)


def draw(seed, height=60, width=90):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(params=[APPEND, IN_PLACE])
def target(request):
    return request.param


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
        bound.context.engine.measure_scratch()
        for chain in chains
        for bound in chain._contexts.values()
    )
    assert opened.backend._scratch.num_bytes == needed
    assert opened.backend._scratch.address in places


@pytest.mark.parametrize("residency", ["all", "one"])
def test_everything_is_given_back(make_twin, open_fake, target, residency):
    opened = open_fake(make_twin(target, context=1024), residency=residency)
    opened.model.answer("What is it?", [draw(0)], options=OPTIONS)
    stream = opened.model.stream([{"role": "user", "content": "Hi"}], OPTIONS)
    next(stream)
    stream.close()
    opened.model.close()
    gc.collect()
    assert opened.driver.blocks == {}
    assert opened.driver.graphs == {}


def test_the_stream_goes_with_the_last_that_uses_it(make_twin, open_fake):
    opened = open_fake(make_twin(APPEND))
    driver = opened.driver
    assert len(driver.streams) == 1
    call = opened.backend.bind_decoder(opened.backend.make_cache(1, 64), 1)
    opened.model.close()
    del opened
    gc.collect()
    with pytest.raises(BackendError, match="bind the decoder again"):
        call.run()
    assert len(driver.streams) == 1
    del call
    gc.collect()
    assert driver.streams == {}


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


def test_a_recording_of_freed_engines_is_never_launched(make_twin, open_fake):
    """Scratch memory of the same address comes back with other engines."""
    opened = open_fake(make_twin(APPEND))
    opened.driver.gives_again = True
    pixels, positions = np.zeros((1, 4, 588), np.uint8), np.zeros((1, 4, 2), np.int64)
    opened.backend.encode_images("vision", pixels, positions)
    call = opened.backend.bind_decoder(opened.backend.make_cache(1, 64), 1)
    for num_tokens in (1, 2, 3):
        call.seqlens_k[...] = num_tokens
        call.run()
    assert opened.driver.calls.count("launch") == 2
    address = opened.backend._scratch.address
    opened.backend.close()
    opened.backend.encode_images("vision", pixels, positions)
    assert opened.backend._scratch.address == address
    with pytest.raises(BackendError, match="bind the decoder again"):
        call.run()
    assert opened.driver.calls.count("launch") == 2
    assert opened.driver.graphs == {}


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
        opened.model.chat_batch([[{"role": "user", "content": "Hi"}]] * 3, OPTIONS)


def test_a_context_beyond_the_engines_is_told(make_twin, open_fake, target):
    needed = {
        APPEND: r"320 tokens.*at most 256: .*`vlmedge build bundle --context 320`",
        IN_PLACE: r"320 tokens.*at most 256: .*export it again with --context 320",
    }
    opened = open_fake(make_twin(target, context=256))
    with pytest.raises(ContextLengthError, match=needed[target]):
        opened.backend.make_cache(1, 320)


def test_engines_of_a_script_need_another_script(make_twin, open_fake, tmp_path):
    """The script takes no options: they are in it."""
    bundle = shutil.copytree(make_twin(APPEND, max_pixels=100352), tmp_path / "bundle")
    path = bundle / "engines" / "fake" / ENGINE_SET_NAME
    raw = json.loads(path.read_text())
    raw["command"] = "bash 'build orin.sh'"
    path.write_text(json.dumps(raw))
    opened = open_fake(bundle)
    calls = {
        "--max-batch 3": lambda: opened.backend.make_cache(3, 64),
        "--context 8192": lambda: opened.backend.make_cache(1, 8192),
        "--max-pixels 313600": lambda: opened.model.answer("?", [draw(0, 560, 560)]),
        "--video": lambda: opened.model.answer("?", videos=[[draw(0)]]),
    }
    for option, call in calls.items():
        with pytest.raises((BackendError, ContextLengthError)) as error:
            call()
        assert str(error.value).endswith(
            "write their script again with "
            f"`vlmedge build BUNDLE ... {option} --emit-script 'build orin.sh'`"
        )


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
