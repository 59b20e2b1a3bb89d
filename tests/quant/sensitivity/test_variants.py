"""Variants side by side give what each gives by itself; the table is rounded as a bundle's."""

import numpy as np
import pytest

from vlmedge.quant.auto.ladders import Ladders
from vlmedge.quant.graph.feeds import make_decoder_feed, make_prompts
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.stages import Walk, keep_every_position
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.quant.sensitivity.token_rows import TableRounder
from vlmedge.quant.sensitivity.variants import FLOAT, Trials, keep_positions
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest

RECIPE = """name = "r"
[vision]
format = "int8"
ranges = "minmax"
smooth = "off"
[decoder]
format = "int8"
ranges = "minmax"
smooth = "off"
[lm_head]
format = "int4-weight"
block_size = 32
[embedding]
format = "lm_head"
"""


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def mixer(source, questions, tmp_path_factory):
    recipe = parse_recipe(RECIPE, "test")
    work = tmp_path_factory.mktemp("work")
    return Ladders(source, read_manifest(source), recipe, questions, work, 1).mixer


@pytest.fixture(scope="module")
def trials(source, mixer, questions):
    manifest = read_manifest(source)
    prompts = make_prompts(source, manifest, questions.examples)
    return Trials(source, manifest, mixer, prompts, num_threads=1)


def test_variants_that_travel_together_are_what_they_are_alone(trials):
    layers = ["visual.blocks.0.attn.qkv", "visual.blocks.0.mlp.fc2"]
    lane = trials.start_vision()
    trials.run("vision", lane, 0, FLOAT)
    own = {name: {name: "int8"} for name in layers}
    together = trials.carry_vision(lane, 1, own, FLOAT)
    for name in layers:
        alone = trials.finish_vision(trials.start_vision(), 0, {name: "int8"})[""]
        assert len(alone) == len(trials.feeds)
        for got, wanted in zip(together[name], alone, strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert any((a != b).any() for a, b in zip(*together.values(), strict=True))


def test_a_decoder_s_variants_tell_whose_prompt_they_speak_of(trials):
    embeds = trials.finish_vision(trials.start_vision(), 0, FLOAT)[""]
    noisy = [rows + 1 for rows in embeds]
    seen = {}

    def collect(name, prompt, logits):
        seen[name, prompt] = logits

    lane = trials.start_decoder({"a": embeds, "b": noisy}, FLOAT)
    trials.finish_decoder(lane, 0, FLOAT, collect)
    together, seen = dict(seen), {}
    for name, rows in (("a", embeds), ("b", noisy)):
        trials.finish_decoder(trials.start_decoder({name: rows}, FLOAT), 0, FLOAT, collect)
    assert list(together) == [(n, i) for n in "ab" for i in range(len(trials.prompts))]
    for key, logits in seen.items():
        np.testing.assert_array_equal(together[key], logits)
    for prompt, found in zip(trials.prompts, range(len(trials.prompts)), strict=True):
        assert len(together["a", found]) == max(1, len(prompt.answer_ids))


def test_positions_are_those_rows_of_all_positions(source):
    manifest = read_manifest(source)
    model = read_graph(source, manifest, "decoder")
    rows = np.random.default_rng(0).standard_normal((1, 9, manifest.decoder.hidden_size))
    feed = {
        "inputs_embeds": rows.astype(np.float32),
        "position_ids": np.tile(np.arange(9), (3, 1, 1)),
        "seqlens_k": np.array([8], np.int32),
        "total_sequence_length": np.array(9, np.int32),
        "logit_index": np.array([2, 7, 8]),
    }
    found = []
    for changed in (keep_every_position(model), keep_positions(model)):
        walk = Walk(changed, source, [feed], num_threads=1)
        for index in range(len(walk.stages)):
            walk.run_stage(index)
        found.append(walk.live[0]["logits"])
    assert found[1].shape == (3, manifest.decoder.vocab_size)
    np.testing.assert_allclose(found[1], found[0][[2, 7, 8]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["int8", "fp8", "lm_head"])
def test_rows_of_the_table_are_those_of_the_bundle(source, mixer, trials, quantize, format):
    head = 'name = "t"\n[lm_head]\nformat = "int4-weight"\nblock_size = 32\n'
    text = f'{head}[embedding]\nformat = "{format}"\n'
    made = quantize(text)
    floats = Embeddings(source, read_manifest(source).embedding)
    rounded = Embeddings(made.bundle, made.manifest.embedding)
    choice = {"model.embed_tokens": format, "lm_head": "int4-weight"}
    for prompt in trials.prompts:
        visual = [
            np.ones((v.num_tokens, floats.hidden_size), np.float32) for v in prompt.request.visuals
        ]
        feed = make_decoder_feed(prompt, visual, floats)
        TableRounder(floats, mixer).round(feed, prompt, choice)
        wanted = make_decoder_feed(prompt, visual, rounded)
        np.testing.assert_array_equal(feed["inputs_embeds"], wanted["inputs_embeds"])


def test_nothing_chosen_is_no_change(mixer):
    assert mixer.change("vision", "visual.blocks.0", {}) is None
    assert mixer.change("vision", "visual.blocks.0", {"visual.blocks.1.mlp.fc1": "int8"}) is None
    assert mixer.change("vision", "head", {"lm_head": "int4-weight"}) is None
    assert mixer.change("decoder", "head", {"lm_head": "int4-weight"}) is not None
    assert mixer.change("decoder", "head", {"lm_head": "float"}) is None
