"""A bundle under observation is the bundle that an app runs."""

import numpy as np
import onnx
import pytest
from PIL import Image

from vlmedge.quant.compare.observe import BundleSide, find_merger_inputs
from vlmedge.quant.compare.reference import NotFiniteError
from vlmedge.quant.data.examples import Example
from vlmedge.quant.graph.feeds import Prompt, make_decoder_feed
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.stages import Walk, keep_every_position
from vlmedge.runtime import BundleError, GenerationOptions, Model
from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.decode.encode import encode_visuals
from vlmedge.runtime.inputs.patches import normalize_patches
from vlmedge.runtime.inputs.request import RequestMaker

NUM_TOKENS = 6


def draw(seed, width, height):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def ask(name, *parts):
    kinds = {str: "text", list: "video"}
    content = []
    for part in parts:
        kind = kinds.get(type(part), "image")
        content.append({"type": kind, kind: part})
    return Example(name, ({"role": "user", "content": content},))


EXAMPLES = {
    "text": ask("text", "What is the total?"),
    "pictures": ask("pictures", draw(1, 90, 60), draw(2, 56, 84), "Compare."),
    "clip": ask("clip", [draw(seed, 60, 90) for seed in range(4)], draw(9, 56, 56), "What moves?"),
}


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture
def side(bundle):
    side = BundleSide(bundle, 1)
    yield side
    side.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_answer_is_the_one_an_app_gets(bundle, side, name):
    seen = side.observe(EXAMPLES[name], NUM_TOKENS)
    options = GenerationOptions(max_new_tokens=NUM_TOKENS, do_sample=False, repetition_penalty=1.0)
    with Model.load(bundle, providers="cpu", num_threads=1) as model:
        answer = model.chat(EXAMPLES[name].messages, options)
    assert (seen.token_ids, seen.text) == (answer.token_ids, answer.text)
    assert seen.logits.argmax(axis=1).tolist() == list(seen.token_ids)


@pytest.mark.parametrize("name", ["pictures", "clip"])
def test_pictures_go_through_the_runtimes_own_preprocessing_and_vit(bundle, side, name):
    manifest = read_manifest(bundle)
    request = RequestMaker(bundle, manifest, None).make(EXAMPLES[name].messages)
    backend = OrtBackend(bundle, manifest, providers="cpu", num_threads=1)
    seen = side.observe(EXAMPLES[name], 0).visuals
    for visual, observed in zip(request.visuals, seen, strict=True):
        (embeds,) = encode_visuals(backend, [visual], manifest.decoder.hidden_size, lambda: False)
        np.testing.assert_array_equal(observed.image_embeds, embeds)
        pixels = manifest.pixels
        patches = normalize_patches(visual.pixel_values, pixels.image_mean, pixels.image_std)
        np.testing.assert_array_equal(observed.pixel_values, patches.reshape(-1, 1176))
        assert observed.before_merger.shape == (len(patches.reshape(-1, 1176)), 32)
    buckets = {"pictures": ["84x56", "56x84"], "clip": ["clip 56x84x2", "56x56"]}
    assert [visual.bucket for visual in seen] == buckets[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_forced_logits_are_those_of_the_whole_text_read_at_once(bundle, side, name):
    # The oracle reads prompt and answer in one call, without cache, writer and sampler.
    forced = (7, 250, 3, 99, 18)
    seen = side.observe(EXAMPLES[name], NUM_TOKENS, forced=forced)
    manifest = read_manifest(bundle)
    request = RequestMaker(bundle, manifest, None).make(EXAMPLES[name].messages)
    prompt = Prompt(name, request, np.array(forced[:-1], np.int64))
    feed = make_decoder_feed(
        prompt,
        [visual.image_embeds for visual in seen.visuals],
        Embeddings(bundle, manifest.embedding),
    )
    model = keep_every_position(read_graph(bundle, manifest, "decoder"))
    walk = Walk(model, bundle, [feed], num_threads=1)
    for index in range(len(walk.stages)):
        walk.run_stage(index)
    needed = walk.live[0]["logits"][-len(forced) :]
    np.testing.assert_allclose(seen.logits, needed, rtol=0, atol=1e-4)


def test_forcing_leaves_the_bundles_own_answer_alone(side):
    alone = side.observe(EXAMPLES["pictures"], NUM_TOKENS)
    forced = (*alone.token_ids[:2], (alone.token_ids[2] + 1) % 300, 5, 6)
    led = side.observe(EXAMPLES["pictures"], NUM_TOKENS, forced=forced)
    assert (led.token_ids, led.text) == (alone.token_ids, alone.text)
    np.testing.assert_array_equal(led.logits[:3], alone.logits[:3])
    assert not np.array_equal(led.logits[3], alone.logits[3])


def test_a_forced_answer_that_it_would_give_itself_is_read_once(side, monkeypatch):
    alone = side.observe(EXAMPLES["text"], NUM_TOKENS)
    runs = []
    run = BundleSide._answer
    monkeypatch.setattr(BundleSide, "_answer", lambda *args: runs.append(1) or run(*args))
    again = side.observe(EXAMPLES["text"], NUM_TOKENS, forced=alone.token_ids)
    assert len(runs) == 1
    assert (again.token_ids, again.text) == (alone.token_ids, alone.text)
    np.testing.assert_array_equal(again.logits, alone.logits)


def test_answers_end_at_an_end_token_unless_told_otherwise(side, monkeypatch):
    first = side.observe(EXAMPLES["text"], NUM_TOKENS).token_ids
    tokens = side.manifest.tokens
    object.__setattr__(tokens, "eos", (first[2],))
    short = side.observe(EXAMPLES["text"], NUM_TOKENS)
    assert short.token_ids == first[: first.index(first[2]) + 1]
    assert side.observe(EXAMPLES["text"], NUM_TOKENS, is_plain=True).token_ids == first


def test_looking_at_pictures_alone_loads_no_decoder(side):
    seen = side.observe(EXAMPLES["pictures"], 0)
    assert (seen.token_ids, seen.text, len(seen.logits)) == ((), "", 0)
    assert "decoder" not in side._backend._sessions


def test_an_answer_never_outgrows_the_context(side):
    decoder = side.manifest.decoder
    length = len(side._maker.make(EXAMPLES["text"].messages).input_ids)
    object.__setattr__(decoder, "max_position_embeddings", length + 3)
    assert len(side.observe(EXAMPLES["text"], NUM_TOKENS, is_plain=True).token_ids) == 3


def test_logits_that_are_no_numbers_are_told(side, monkeypatch):
    embeddings = side._engine._embeddings
    monkeypatch.setattr(embeddings, "gather", lambda token_ids, out: out.fill(np.nan))
    with pytest.raises(NotFiniteError, match="logits hold NaN"):
        side.observe(EXAMPLES["text"], NUM_TOKENS)


def test_the_merger_is_found_by_its_norm(bundle):
    graph = read_graph(bundle, read_manifest(bundle), "vision").graph
    assert find_merger_inputs(graph) == (
        "/visual/blocks.1/norm2/SkipLayerNorm/output_3",
        "/visual/blocks.1/mlp/fc2/MatMul/output_0",
    )
    node = next(node for node in graph.node if "visual.merger.ln_q.weight" in node.input)
    node.op_type = "RMSNormalization"
    with pytest.raises(BundleError, match="needed a sum before the merger"):
        find_merger_inputs(graph)
    with pytest.raises(BundleError, match="no node that reads"):
        find_merger_inputs(onnx.GraphProto(name="empty"))


def test_a_bundle_without_a_graph_for_clips_says_so(side):
    del side.manifest.graphs["vision_video"]
    with pytest.raises(BundleError, match="no vision_video graph"):
        side.observe(EXAMPLES["clip"], 1)
