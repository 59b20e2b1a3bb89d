"""Graphs, positions and cache against transformers over a matrix of model shapes, in float32.

Tolerance 1e-4 where not said otherwise: image embeddings and logits are of the order of 1, float32
sums of up to 640 products in another order differ by 1e-6 to 1e-5, and any wrong term (a swapped
section, a shifted position, a lost bias) changes them by more than 1e-2. Greedy tokens must be
identical. Between two ways of our own through the same graphs: 1e-5.
"""

import dataclasses
import shutil

import numpy as np
import pytest

from vlmedge.export.exporter import export_checkpoint
from vlmedge.runtime.decode import generate
from vlmedge.runtime.options import GenerationOptions

NUM_TOKENS = 8


def make_picture(seed, width, height):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ask(*parts):
    """One user turn: arrays are pictures, lists of them clips, strings text."""
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, list):
            content.append({"type": "video", "video": part})
        else:
            content.append({"type": "image", "image": part})
    return [{"role": "user", "content": content}]


WIDE, TALL, SQUARE = make_picture(1, 230, 60), make_picture(2, 58, 170), make_picture(3, 112, 112)
CLIP = [make_picture(seed, 120, 90) for seed in range(4)]
REQUESTS = {
    "text": ask("What is the total?"),
    "one token square": ask(make_picture(4, 56, 56), "?"),
    "wide": ask(WIDE, "Read it."),
    "tall": ask(TALL, "Read it."),
    "mixed sizes": ask(WIDE, "above", TALL, SQUARE, "Compare."),
    "equal sizes": ask(SQUARE, make_picture(5, 112, 112), make_picture(6, 112, 112), "Odd one?"),
    "clip": ask(CLIP, "What moves?"),
    "clip and picture": ask("First", CLIP, "then", WIDE, "and?"),
}


def assert_close(got, needed, tolerance=1e-4):
    np.testing.assert_allclose(got, needed, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_transformers(pair, name):
    ours = pair.run(REQUESTS[name], NUM_TOKENS)
    theirs = pair.run_reference(REQUESTS[name], NUM_TOKENS)
    assert_close(ours.logits, theirs.logits)
    assert ours.token_ids == theirs.token_ids


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in ("text", "mixed sizes")])
def test_image_embeddings_are_those_of_transformers(pair, name):
    ours = pair.run(REQUESTS[name], 1).image_embeds
    theirs = pair.run_reference(REQUESTS[name], 1).image_embeds
    if name == "clip and picture":  # transformers takes pictures before clips, we as they come
        theirs = np.roll(theirs, len(pair.maker.make(ask(CLIP)).is_visual.nonzero()[0]), axis=0)
    assert_close(ours, theirs)


def test_a_picture_is_a_clip_of_two_equal_frames(pair):
    # Two graphs of the same weights: one adds the two frames' kernels beforehand.
    picture = pair.run(ask(SQUARE, "?"), 1).image_embeds
    clip = pair.run(ask([SQUARE, SQUARE], "?"), 1).image_embeds
    assert_close(picture, clip, 1e-5)


def test_pictures_of_one_size_do_not_see_each_other(pair):
    alone = pair.run(ask(SQUARE, "?"), 1).image_embeds
    together = pair.run(ask(make_picture(9, 112, 112), SQUARE, "?"), 1).image_embeds
    assert_close(together[len(alone) :], alone, 1e-5)


def test_a_ragged_batch_answers_each_as_alone(pair):
    names = list(REQUESTS)
    options = [GenerationOptions(max_new_tokens=3 + i, ignore_eos=True) for i in range(len(names))]
    answers = pair.model.chat_batch([REQUESTS[name] for name in names], options)
    for name, limit, answer in zip(names, options, answers, strict=True):
        assert list(answer.token_ids) == pair.run(REQUESTS[name], limit.max_new_tokens).token_ids


def test_cached_decoding_equals_prefilling_everything_again(pair):
    request = pair.maker.make(REQUESTS["clip and picture"])
    cached = pair.run_request(request, NUM_TOKENS)
    for step in (1, NUM_TOKENS - 1):
        new_ids = cached.token_ids[:step]
        rows = np.arange(step) + request.position_ids.max() + 1
        longer = dataclasses.replace(
            request,
            input_ids=np.append(request.input_ids, new_ids),
            position_ids=np.hstack([request.position_ids, np.tile(rows, (3, 1))]),
            is_visual=np.append(request.is_visual, np.zeros(step, bool)),
        )
        assert_close(pair.run_request(longer, 1).logits[0], cached.logits[step], 1e-5)


@pytest.mark.parametrize("chunk", [1, 13])
def test_prefill_in_chunks_gives_the_same_logits(pair, monkeypatch, chunk):
    whole = pair.run(REQUESTS["mixed sizes"], NUM_TOKENS)
    monkeypatch.setattr(generate, "PREFILL_TOKENS", chunk)
    chunked = pair.run(REQUESTS["mixed sizes"], NUM_TOKENS)
    assert_close(chunked.logits, whole.logits, 1e-5)
    assert chunked.token_ids == whole.token_ids


def test_a_checkpoint_saved_by_transformers_gives_the_same_bundle(pair, tmp_path):
    # Saved in one file, with nested config and perhaps other names: the same bytes must come out.
    pair.reference.save_pretrained(tmp_path / "saved")
    for file in pair.checkpoint.glob("*.json"):
        if file.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copy(file, tmp_path / "saved")
    manifest = export_checkpoint(tmp_path / "saved", tmp_path / "bundle")
    for name in ("vision.onnx.data", "decoder.onnx.data", manifest.embedding.file):
        assert manifest.files[name] == pair.manifest.files[name]
    assert manifest.tokens == pair.manifest.tokens


def test_the_comparison_can_fail(pair):
    # One level of one pixel is the least a wrong patch can be off.
    changed = SQUARE.copy()
    changed[50, 50, 0] ^= 0x80
    ours = pair.run(ask(changed, "?"), 1)
    theirs = pair.run_reference(ask(SQUARE, "?"), 1)
    with pytest.raises(AssertionError):
        assert_close(ours.image_embeds, theirs.image_embeds)
    with pytest.raises(AssertionError):
        assert_close(ours.logits, theirs.logits)
