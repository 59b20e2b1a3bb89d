"""Whole answers against transformers, on random weights in float32.

Tokens must be identical. Logits: 1e-4, the usual of two float32 graphs with other summation orders.
Between our own ways to the same logits: 1e-5.
"""

import dataclasses

import numpy as np
import pytest

from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.decode import generate
from vlmedge.runtime.inputs.patches import normalize_patches

NUM_NEW_TOKENS = 16
OPTIONS = GenerationOptions(max_new_tokens=NUM_NEW_TOKENS, ignore_eos=True)


def make_picture(seed, height=84, width=84):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def show(*parts):
    """One user turn: arrays are pictures, lists of them clips, strings text."""
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, list):
            content.append({"type": "video", "video": part})
        else:
            content.append({"type": "image", "image": part})
    return {"role": "user", "content": content}


WIDE, TALL = make_picture(1, 60, 200), make_picture(2, 170, 90)
CLIP = [make_picture(seed) for seed in range(4)]
CONVERSATIONS = {
    "text": [{"role": "user", "content": "What is the total?"}],
    "one picture": [show(WIDE, "Read it.")],
    "two sizes": [show(WIDE, "and", TALL, "Which is higher?")],
    "equal sizes": [show(make_picture(3), make_picture(4), "Compare.")],
    "picture last": [show("Look:", TALL)],
    "clip": [show(CLIP, "What moves?")],
    "odd clip": [show(CLIP[:3], "What moves?")],
    "clip between pictures": [show(WIDE, "first", CLIP, TALL, "last")],
    "several turns": [
        {"role": "system", "content": "Be brief."},
        show(WIDE, "Read it."),
        {"role": "assistant", "content": "12.50"},
        show("And this?", TALL),
    ],
}


def make_reference_inputs(model, messages):
    """The same request as transformers takes it; the pixels are compared in test_patches.py."""
    import torch

    request = model._maker.make(messages)
    tokens, pixels = model.manifest.tokens, model.manifest.pixels
    ids = torch.from_numpy(request.input_ids)[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == tokens.image_pad) + 2 * (ids == tokens.video_pad),
    }
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        visuals = [visual for visual in request.visuals if visual.kind == kind]
        if visuals:
            patches = [
                normalize_patches(v.pixel_values, pixels.image_mean, pixels.image_std)
                for v in visuals
            ]
            rows = np.concatenate([patch.reshape(-1, 1176) for patch in patches])
            inputs[key] = torch.from_numpy(rows)
            inputs[f"{kind}_grid_thw"] = torch.tensor([tuple(v.grid) for v in visuals])
    return inputs


def generate_reference(reference, inputs):
    import torch

    with torch.no_grad():
        output = reference.generate(
            **inputs,
            max_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, torch.cat(output.logits).numpy()


class LogitRecorder:
    """A backend that keeps a copy of the logits of every decoder call."""

    def __init__(self, backend):
        self._backend = backend
        self.logits = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def bind_decoder(self, *args, **kwargs):
        call = self._backend.bind_decoder(*args, **kwargs)
        run = call.run

        def run_and_keep():
            logits = run()
            self.logits.append(logits.copy())
            return logits

        call.run = run_and_keep
        return call


@pytest.fixture
def recorder(model, monkeypatch):
    recorder = LogitRecorder(model._engine._backend)
    monkeypatch.setattr(model._engine, "_backend", recorder)
    return recorder


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_answers_are_those_of_transformers(model, reference, recorder, name):
    messages = CONVERSATIONS[name]
    inputs = make_reference_inputs(model, messages)
    needed, needed_logits = generate_reference(reference, inputs)
    answer = model.chat(messages, OPTIONS)
    assert answer.token_ids == tuple(needed)
    np.testing.assert_allclose(np.concatenate(recorder.logits), needed_logits, atol=1e-4)


def test_long_clips_follow_the_rule_that_is_asked_for(tiny, reference):
    # More frame pairs than rows or columns: here transformers >= 5.3 leaves the paper.
    clip = [make_picture(seed, 56, 56) for seed in range(12)]
    messages = [show(clip, "What moves?")]
    with Model.load(tiny.bundle, mrope_rule="transformers>=5.3") as theirs:
        needed, _ = generate_reference(reference, make_reference_inputs(theirs, messages))
        assert theirs.chat(messages, OPTIONS).token_ids == tuple(needed)
        theirs_ids = theirs._maker.make(messages).position_ids
    with Model.load(tiny.bundle, mrope_rule="paper") as papers:
        assert (papers._maker.make(messages).position_ids != theirs_ids).any()


def test_a_repetition_penalty_is_that_of_transformers(model, reference):
    messages = CONVERSATIONS["one picture"]
    inputs = make_reference_inputs(model, messages)
    output = reference.generate(
        **inputs, max_new_tokens=NUM_NEW_TOKENS, do_sample=False, repetition_penalty=1.3
    )
    options = dataclasses.replace(OPTIONS, repetition_penalty=1.3)
    needed = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(model.chat(messages, options).token_ids) == needed


def test_cached_decoding_equals_prefilling_everything_again(model, recorder):
    messages = CONVERSATIONS["clip between pictures"]
    model.chat(messages, OPTIONS)
    cached = np.concatenate(recorder.logits)
    request = model._maker.make(messages)
    token_ids = cached.argmax(-1)
    for step in (1, 7, NUM_NEW_TOKENS - 1):
        recorder.logits.clear()
        longer = extend(request, token_ids[:step])
        run_request(model, longer)
        np.testing.assert_allclose(recorder.logits[0][0], cached[step], atol=1e-5)


def extend(request, token_ids):
    """The request with an answer's first tokens at its end, as the paper places them."""
    first = request.position_ids.max() + 1
    rows = np.arange(first, first + len(token_ids))
    return dataclasses.replace(
        request,
        input_ids=np.append(request.input_ids, token_ids),
        position_ids=np.hstack([request.position_ids, np.tile(rows, (3, 1))]),
        is_visual=np.append(request.is_visual, np.zeros(len(token_ids), bool)),
    )


def run_request(model, request, num_tokens=1):
    from vlmedge.runtime.engine import Job

    options = GenerationOptions(max_new_tokens=num_tokens, ignore_eos=True)
    (answer,) = model._engine.start(Job([request], [options], 0.0), None).finish()
    return answer


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_gives_the_same_logits(model, recorder, monkeypatch, chunk):
    messages = CONVERSATIONS["clip between pictures"]
    whole = model.chat(messages, OPTIONS)
    logits = np.concatenate(recorder.logits)
    recorder.logits.clear()
    monkeypatch.setattr(generate, "PREFILL_TOKENS", chunk)
    chunked = model.chat(messages, OPTIONS)
    assert chunked.token_ids == whole.token_ids
    np.testing.assert_allclose(np.concatenate(recorder.logits[-16:]), logits, atol=1e-5)


@pytest.mark.parametrize("chunk", [16, 100_000], ids=["row by row", "padded in one call"])
def test_a_ragged_batch_gives_each_the_answer_it_gets_alone(model, monkeypatch, chunk):
    monkeypatch.setattr(generate, "PREFILL_TOKENS", chunk)
    names = list(CONVERSATIONS)
    # Answers of different lengths too: rows end while others go on.
    options = [
        dataclasses.replace(OPTIONS, max_new_tokens=3 + 2 * row, temperature=1.5, seed=row)
        if row % 2
        else dataclasses.replace(OPTIONS, max_new_tokens=3 + 2 * row)
        for row in range(len(names))
    ]
    batch = model.chat_batch([CONVERSATIONS[name] for name in names], options)
    for name, alone, answer in zip(names, options, batch, strict=True):
        needed = model.chat(CONVERSATIONS[name], alone)
        assert answer.token_ids == needed.token_ids
        assert answer.text == needed.text
        assert answer.num_prompt_tokens == needed.num_prompt_tokens
        assert answer.num_image_tokens == needed.num_image_tokens


def test_small_visual_calls_equal_large_ones(model, monkeypatch):
    from vlmedge.runtime.decode import encode

    messages = [show(make_picture(3), CLIP, make_picture(4), "Compare.")]
    together = model.chat(messages, OPTIONS)
    monkeypatch.setattr(encode, "VISION_PATCHES", 1)
    assert model.chat(messages, OPTIONS).token_ids == together.token_ids


def test_only_the_tokens_of_the_prompt_and_answer_are_in_the_cache(model, recorder, monkeypatch):
    caches = []
    make_cache = recorder._backend.make_cache
    monkeypatch.setattr(
        recorder, "make_cache", lambda *size: caches.append(make_cache(*size)) or caches[-1], False
    )
    answer = model.chat(CONVERSATIONS["one picture"], OPTIONS)
    (cache,) = caches
    # Past and present are one buffer, written in place; the last token is never fed back.
    num_cached = answer.num_prompt_tokens + NUM_NEW_TOKENS - 1
    for buffer in cache.buffers.values():
        assert buffer[:, :, :num_cached].any(axis=(1, 3)).all()
        assert not buffer[:, :, num_cached:].any()
    num_layers = model.manifest.decoder.num_layers
    assert len(cache.buffers) == 2 * num_layers
    assert cache.num_bytes == sum(buffer.nbytes for buffer in cache.buffers.values())
