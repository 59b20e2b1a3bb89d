"""Decoder calls of graphs written for TensorRT: which rows of the cache they write, and what with.

The oracle is the onnxruntime flavor of the same weights, which takes lengths and no mask. Tolerance
1e-5: one graph's float32 sums against another's, of values of the order of 1.
"""

import dataclasses

import numpy as np
import pytest

from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.decode import generate
from vlmedge.runtime.errors import BackendError, ContextLengthError

CAPACITY = 32
TARGETS = {"append": ("jetpack-6.2", None), "in_place": ("jetpack-7.2", CAPACITY)}
UNTOUCHED = np.float32(77)  # what the cache is filled with, to see which rows are written


def assert_close(got, needed):
    np.testing.assert_allclose(got, needed, rtol=0, atol=1e-5)


@pytest.fixture(scope="session")
def lowered(tiny, tmp_path_factory):
    """Cache mode -> the bundle of graphs for a target that has it."""
    made = {}

    def make(mode):
        if mode not in made:
            made[mode] = tmp_path_factory.mktemp("target") / "bundle"
            target, context = TARGETS[mode]
            export_for_target(tiny.bundle, made[mode], LoweringOptions(target, "fp32", context))
        return made[mode]

    return make


@pytest.fixture(scope="session")
def long_cache(tiny, tmp_path_factory):
    """As `lowered` in place, with room for whole prompts."""
    bundle = tmp_path_factory.mktemp("target") / "bundle"
    export_for_target(tiny.bundle, bundle, LoweringOptions("jetpack-7.2", "fp32", 256))
    return bundle


@pytest.fixture(params=TARGETS)
def mode(request):
    return request.param


def open_backend(bundle):
    return OrtBackend(bundle, read_manifest(bundle), providers="cpu", num_threads=1)


@pytest.fixture
def pair(lowered, tiny, mode):
    """(backend, cache) of the target's graphs and of ONNX Runtime's own, two sequences each."""
    ours, plain = (open_backend(bundle) for bundle in (lowered(mode), tiny.bundle))
    return [(backend, backend.make_cache(2, CAPACITY)) for backend in (ours, plain)]


def make_inputs(backend, batch, num_tokens, seed=0):
    rng = np.random.default_rng(seed)
    size = backend._manifest.decoder.hidden_size
    embeds = rng.standard_normal((batch, num_tokens, size)).astype(np.float32) * 0.5
    return embeds, np.sort(rng.integers(0, num_tokens + 9, (3, batch, num_tokens)), axis=2)


def fill(call, embeds, positions, last, logit_index):
    """Inputs of a call; last: each row's last cached token once it has run."""
    call.inputs_embeds[...] = embeds
    call.position_ids[...] = positions
    call.seqlens_k[...] = last
    call.total_sequence_length[...] = np.max(last) + 1
    call.logit_index[...] = logit_index


def run_both(pair, num_tokens, last, logit_index, *, row=None, seed=0):
    """Logits of both."""
    logits = []
    for backend, cache in pair:
        call = backend.bind_decoder(cache, num_tokens, row=row)
        embeds, positions = make_inputs(backend, len(call.seqlens_k), num_tokens, seed)
        fill(call, embeds, positions, last, logit_index)
        logits.append(call.run().copy())
    return logits


def assert_caches_equal(pair, lengths):
    """As far as tokens are: what lies behind them is anybody's."""
    (_, ours), (_, plain) = pair
    assert set(ours.buffers) == set(plain.buffers)
    for name, buffer in ours.buffers.items():
        for row, length in enumerate(lengths):
            assert_close(buffer[row, :, :length], plain.buffers[name][row, :, :length])


def test_the_calls_of_an_answer_write_what_the_plain_flavor_writes(pair):
    # A padded prompt, a step of both, a step in which the second has ended: its slot is run again.
    for num_tokens, last, logit_index, lengths in (
        (9, [8, 3], [8, 3], [9, 4]),
        (1, [9, 4], [0, 0], [10, 5]),
        (1, [10, 4], [0, 0], [11, 5]),
    ):
        ours, plain = run_both(pair, num_tokens, last, logit_index, seed=last[0])
        assert_close(ours, plain)
        assert_caches_equal(pair, lengths)


def test_chunks_of_one_row_leave_the_other_alone(pair):
    (_, cache), (_, plain) = pair
    for buffer in cache.buffers.values():
        buffer[...] = UNTOUCHED
    done = 0
    for size in (5, 1, 4):
        ours, theirs = run_both(pair, size, done + size - 1, size - 1, row=1, seed=size)
        assert_close(ours, theirs)
        done += size
    for name, buffer in cache.buffers.items():
        assert (buffer[0] == UNTOUCHED).all()
        assert_close(buffer[1, :, :done], plain.buffers[name][1, :, :done])
        assert (buffer[1, :, done:] == UNTOUCHED).all()


def test_what_an_unused_slot_holds_does_not_matter(pair):
    (backend, cache), _ = pair
    call = backend.bind_decoder(cache, 4)
    fill(call, *make_inputs(backend, 2, 4), [3, 3], [3, 3])
    clean = call.run().copy()
    for buffer in cache.buffers.values():
        buffer[...] = 1e4
    assert_close(call.run(), clean)


def test_the_cache_may_be_filled_to_the_last_slot(pair):
    ours, plain = run_both(pair, CAPACITY - 1, [CAPACITY - 2, 5], [CAPACITY - 2, 5])
    assert_close(ours, plain)
    ours, plain = run_both(pair, 1, [CAPACITY - 1, 6], 0)
    assert_close(ours, plain)
    assert_caches_equal(pair, [CAPACITY, 7])


def test_a_call_reads_its_buffers_anew_at_each_run(pair):
    backend, cache = pair[0]
    call = backend.bind_decoder(cache, 2)
    embeds, positions = make_inputs(backend, 2, 2)
    fill(call, embeds, positions, [1, 1], [1, 1])
    first = call.run().copy()
    fill(call, -embeds, positions, [1, 1], [1, 1])
    assert np.abs(call.run() - first).max() > 0.01
    fill(call, embeds, positions, [1, 1], [1, 1])
    assert_close(call.run(), first)


def test_the_logit_that_is_asked_for_is_given(pair):
    for index in ([0, 2], [3, 1]):
        ours, plain = run_both(pair, 4, [3, 3], index)
        assert_close(ours, plain)
        assert np.abs(ours[0] - ours[1]).max() > 0.01


def test_a_graph_with_a_capacity_of_its_own_decides_the_caches(lowered):
    cache = open_backend(lowered("in_place")).make_cache(1, 8)
    assert cache.capacity == CAPACITY
    assert {buffer.shape[2] for buffer in cache.buffers.values()} == {CAPACITY}
    assert open_backend(lowered("append")).make_cache(1, 8).capacity == 8


def test_no_more_tokens_are_promised_than_the_graphs_cache_holds(lowered):
    with Model.load(lowered("in_place"), providers="cpu", num_threads=1) as model:
        assert model.manifest.context_length == CAPACITY
        with pytest.raises(ContextLengthError, match=f"room for {CAPACITY - 1}"):
            model.answer("x" * CAPACITY)


def test_what_onnxruntime_refuses_is_a_backend_error(pair):
    backend, cache = pair[0]
    narrow = {name: buffer[..., :-1].copy() for name, buffer in cache.buffers.items()}
    call = backend.bind_decoder(dataclasses.replace(cache, buffers=narrow), 2)
    with pytest.raises(BackendError, match="the decoder graph failed"):
        call.run()


@pytest.mark.parametrize("chunk", [7, 512])
def test_whole_answers_are_those_of_the_plain_flavor(
    lowered, long_cache, tiny, mode, monkeypatch, chunk
):
    monkeypatch.setattr(generate, "PREFILL_TOKENS", chunk)
    picture = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    questions = [
        [{"role": "user", "content": text}] for text in ("?", "What is the total, and why?")
    ]
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Read."}]
    questions.append([{"role": "user", "content": content}])
    options = [GenerationOptions(max_new_tokens=n, ignore_eos=True) for n in (9, 2, 5)]
    answers = []
    for bundle in (lowered("append") if mode == "append" else long_cache, tiny.bundle):
        with Model.load(bundle, providers="cpu", num_threads=1) as model:
            answers.append([a.token_ids for a in model.chat_batch(questions, options)])
    assert answers[0] == answers[1]
