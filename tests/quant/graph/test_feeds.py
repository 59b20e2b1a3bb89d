"""The decoder is calibrated with what it sees on a device: the runtime's own run is the oracle."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from vlmedge.quant.data.examples import Example
from vlmedge.quant.graph.feeds import make_decoder_feed, make_prompts, make_vision_feeds
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.stages import Walk
from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.decode.encode import encode_visuals

NUM_TOKENS = 5


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def manifest(bundle):
    return read_manifest(bundle)


@pytest.fixture(scope="module")
def prompts(bundle, manifest, questions):
    return make_prompts(bundle, manifest, questions.examples)


def run_vision(bundle, manifest, prompt):
    backend = OrtBackend(bundle, manifest, providers="cpu", num_threads=1)
    size = manifest.decoder.hidden_size
    return encode_visuals(backend, prompt.request.visuals, size, lambda: False)


def test_pictures_and_clips_go_to_their_graphs_in_the_order_of_the_prompts(prompts):
    feeds = make_vision_feeds(prompts)
    assert [(feed.prompt, feed.graph) for feed in feeds] == [
        (0, "vision"),
        (1, "vision"),
        (1, "vision"),
        (2, "vision_video"),
    ]
    for feed in feeds:
        assert feed.tensors["pixel_values"].dtype == np.uint8
        width = 588 if feed.graph == "vision" else 1176
        assert feed.tensors["pixel_values"].shape[2] == width
        assert feed.tensors["position_ids"].shape == (*feed.tensors["pixel_values"].shape[:2], 2)


def test_a_prompt_ends_with_its_answer_and_the_end_token(bundle, manifest, prompts):
    tokenizer = Tokenizer.from_file(str(bundle / manifest.tokenizer_file))
    answer = prompts[0].answer_ids
    assert answer[-1] == manifest.tokens.eos[0]
    assert tokenizer.decode(answer[:-1].tolist()) == "a slope"
    assert len(prompts[1].answer_ids) == 0
    assert [prompt.example for prompt in prompts] == ["one", "two", "clip"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_call_over_all_positions_gives_the_runtimes_own_first_token(
    bundle, manifest, questions, prompts, number
):
    prompt = prompts[number]
    embeds = run_vision(bundle, manifest, prompt)
    feed = make_decoder_feed(prompt, embeds, Embeddings(bundle, manifest.embedding))
    # logits at the prompt's last token, whatever answer stands behind it
    feed["logit_index"] = np.array([len(prompt.request.input_ids) - 1], np.int64)
    walk = Walk(read_graph(bundle, manifest, "decoder"), bundle, [feed], num_threads=1)
    for index in range(len(walk.stages)):
        walk.run_stage(index)
    options = GenerationOptions(max_new_tokens=1, do_sample=False, repetition_penalty=1.0)
    with Model.load(bundle, providers="cpu", num_threads=1) as model:
        answer = model.chat(questions.examples[number].messages, options)
    assert walk.live[0]["logits"].argmax() == answer.token_ids[0]


@pytest.mark.parametrize("number", [0, 2])
def test_tokens_of_an_answer_stand_where_decoding_puts_them(bundle, manifest, questions, number):
    # The runtime's own answer, forced: each position's logits must choose the next token of it.
    options = GenerationOptions(max_new_tokens=NUM_TOKENS, do_sample=False, repetition_penalty=1.0)
    with Model.load(bundle, providers="cpu", num_threads=1) as model:
        token_ids = model.chat(questions.examples[number].messages, options).token_ids
    (prompt,) = make_prompts(bundle, manifest, questions.examples[number : number + 1])
    object.__setattr__(prompt, "answer_ids", np.array(token_ids, np.int64))
    embeds = run_vision(bundle, manifest, prompt)
    table = Embeddings(bundle, manifest.embedding)
    model = read_graph(bundle, manifest, "decoder")
    assert len(token_ids) > 1
    for count in range(1, len(token_ids)):
        feed = make_decoder_feed(prompt, embeds, table)
        feed["logit_index"] = np.array([len(prompt.request.input_ids) - 1 + count], np.int64)
        walk = Walk(model, bundle, [feed], num_threads=1)
        for index in range(len(walk.stages)):
            walk.run_stage(index)
        assert walk.live[0]["logits"].argmax() == token_ids[count]


def test_visual_tokens_stand_in_their_places_and_text_in_its_own(bundle, manifest, prompts):
    prompt = prompts[1]
    table = Embeddings(bundle, manifest.embedding)
    size = manifest.decoder.hidden_size
    counts = [visual.num_tokens for visual in prompt.request.visuals]
    marked = [np.full((count, size), 100 + i, np.float32) for i, count in enumerate(counts)]
    embeds = make_decoder_feed(prompt, marked, table)["inputs_embeds"][0]
    ids = prompt.request.input_ids
    places = np.flatnonzero(ids == manifest.tokens.image_pad)
    assert len(places) == sum(counts)
    needed = np.repeat([100, 101], counts)
    np.testing.assert_array_equal(embeds[places], np.tile(needed[:, None], size))
    text = np.flatnonzero(ids != manifest.tokens.image_pad)
    rows = np.empty((len(text), size), np.float32)
    table.gather(ids[text], rows)
    np.testing.assert_array_equal(embeds[text], rows)


def test_an_answer_is_cut_where_the_context_ends(bundle, manifest, questions):
    limit = len(make_prompts(bundle, manifest, questions.examples[:1])[0].request.input_ids) + 2
    short = read_manifest(bundle)
    object.__setattr__(short.decoder, "max_position_embeddings", limit)
    (prompt,) = make_prompts(bundle, short, questions.examples[:1])
    assert len(prompt.answer_ids) == 2
    object.__setattr__(short.decoder, "max_position_embeddings", limit - 2)
    with pytest.raises(ValueError, match=r"example one: the prompt has .*\d+ tokens.*context"):
        make_prompts(bundle, short, questions.examples[:1])


@pytest.mark.parametrize(
    "messages",
    [
        ({"role": "user", "content": [{"type": "image", "image": b"no picture"}]},),
        ({"role": "user", "content": [{"type": "sound", "sound": "x"}]},),
        (),
    ],
)
def test_an_example_that_the_model_cannot_take_is_named(bundle, manifest, messages):
    with pytest.raises(ValueError, match="example bad/1: "):
        make_prompts(bundle, manifest, [Example("bad/1", messages)])
