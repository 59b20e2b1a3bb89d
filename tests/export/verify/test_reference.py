"""transformers as a side: the same examples, the same numbers as a float32 bundle's.

Tolerance 1e-4: values are of the order of 1, float32 sums in another order differ by 1e-5.
"""

import numpy as np
import pytest
from PIL import Image

from vlmedge.export.verify.reference import TransformersSide, open_reference
from vlmedge.quant.compare.layer_walk import LayeredBundle
from vlmedge.quant.compare.observe import BundleSide
from vlmedge.quant.compare.reference import open_checkpoint
from vlmedge.quant.data.examples import Example
from vlmedge.quant.graph.feeds import make_prompts

NUM_TOKENS = 6


def draw(seed, width, height):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def ask(name, *parts, answers=()):
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "video", "video": part}
        if isinstance(part, list)
        else part
        if isinstance(part, dict)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return Example(name, ({"role": "user", "content": content},), answers)


CLIP = [draw(seed, 90, 60) for seed in range(3)]
EXAMPLES = {
    "text": ask("text", "Why?", answers=("12",)),
    "picture": ask("picture", draw(5, 230, 130), "What?", answers=("a b",)),
    "pictures around a clip": ask("both", draw(6, 60, 90), CLIP, draw(7, 84, 84), "Which?"),
    "own limits": ask(
        "limits", {"type": "image", "image": draw(8, 200, 200), "max_pixels": 84 * 84}, "Where?"
    ),
}


@pytest.fixture(scope="module")
def made(make_bundle):
    return make_bundle("tiny-7b", seed=3, dtype="F32")


@pytest.fixture(scope="module")
def theirs(made):
    return TransformersSide(made.checkpoint, made.bundle, 1)


@pytest.fixture(scope="module")
def ours(made):
    return BundleSide(made.bundle, 1)


def assert_close(got, needed):
    np.testing.assert_allclose(got, needed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_sides_see_and_say_the_same(ours, theirs, name):
    needed = theirs.observe(EXAMPLES[name], NUM_TOKENS, is_plain=True)
    got = ours.observe(EXAMPLES[name], NUM_TOKENS, is_plain=True)
    assert (got.token_ids, got.text) == (needed.token_ids, needed.text)
    assert_close(got.logits, needed.logits)
    assert len(got.visuals) == len(needed.visuals) == name.count("clip") * 2 + (name != "text")
    for mine, other in zip(got.visuals, needed.visuals, strict=True):
        assert mine.bucket == other.bucket
        np.testing.assert_array_equal(mine.pixel_values, other.pixel_values)
        assert_close(mine.before_merger, other.before_merger)
        assert_close(mine.image_embeds, other.image_embeds)


def test_pictures_of_one_prompt_keep_their_order(theirs):
    seen = theirs.observe(EXAMPLES["pictures around a clip"], 0)
    assert [visual.bucket for visual in seen.visuals] == ["56x84", "clip 84x56x2", "84x84"]
    assert (seen.token_ids, seen.text, len(seen.logits)) == ((), "", 0)


def test_a_pictures_own_limits_count(theirs):
    (visual,) = theirs.observe(EXAMPLES["own limits"], 0).visuals
    assert visual.bucket == "84x84"


def test_looking_alone_gives_the_same_embeddings_as_answering(theirs):
    answered = theirs.observe(EXAMPLES["picture"], 1).visuals[0]
    looked = theirs.observe(EXAMPLES["picture"], 0).visuals[0]
    np.testing.assert_array_equal(answered.image_embeds, looked.image_embeds)


def test_an_end_token_ends_the_answer(theirs, made):
    side = TransformersSide(made.checkpoint, made.bundle, 1)
    full = theirs.observe(EXAMPLES["picture"], NUM_TOKENS, is_plain=True)
    tokens = side._manifest.tokens
    object.__setattr__(tokens, "eos", (full.token_ids[1],))
    short = side.observe(EXAMPLES["picture"], NUM_TOKENS)
    assert short.token_ids == full.token_ids[: full.token_ids.index(full.token_ids[1]) + 1]
    assert len(short.logits) == len(short.token_ids)


def trace(tracer, prompts, layers):
    told = {}
    tracer.trace(
        prompts,
        layers,
        lambda layer, number, x, y: told.__setitem__((layer, number), (x, y)),
        lambda step: None,
    )
    return told


def test_layers_have_the_same_inputs_and_outputs(made, theirs):
    layered = LayeredBundle(made.bundle, 1)
    prompts = make_prompts(made.bundle, layered.manifest, list(EXAMPLES.values()))
    needed = trace(theirs, prompts, list(layered.layers))
    got = trace(layered, prompts, list(layered.layers))
    assert got.keys() == needed.keys()
    assert {layer for layer, _ in got} == set(layered.layers)
    for key, (x, y) in got.items():
        assert_close(x, needed[key][0])
        assert_close(y, needed[key][1])


def test_parameters_are_read_by_our_names(made, theirs):
    layered = LayeredBundle(made.bundle, 1)
    for layer in layered.layers:
        np.testing.assert_array_equal(theirs.read_matrix(layer), layered.read_matrix(layer))
    for name in ("visual.blocks.0.norm1.weight", "model.layers.1.input_layernorm.weight"):
        np.testing.assert_array_equal(theirs.read_vector(name), layered.read_vector(name))


def test_the_entry_point_leads_here(made):
    side = open_checkpoint(str(made.checkpoint), made.bundle, 1)
    assert isinstance(side, TransformersSide)
    assert side.name == "transformers, checkpoint"
    side.close()
    assert isinstance(open_reference(str(made.checkpoint), made.bundle, 1), TransformersSide)


def test_a_missing_checkpoint_is_an_error(made, tmp_path):
    with pytest.raises(ValueError, match="none"):
        TransformersSide(tmp_path / "none", made.bundle)
