"""Rows told by a walk are the layers' real inputs and outputs."""

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.compare.layer_rows import pick_rows
from vlmedge.quant.compare.layer_walk import LayeredBundle
from vlmedge.quant.compare.observe import BundleSide
from vlmedge.quant.data.examples import Example
from vlmedge.quant.graph.feeds import make_prompts
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.linears import GraphWeights, list_linears
from vlmedge.runtime.bundle.manifest_file import read_manifest


def draw(seed, width, height):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def ask(name, *content, answers=()):
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "video", "video": part}
        if isinstance(part, list)
        else {"type": "image", "image": part}
        for part in content
    ]
    return Example(name, ({"role": "user", "content": parts},), answers)


EXAMPLES = [
    ask("picture", draw(1, 90, 60), "What?"),
    ask("text", "Why?"),
    ask("clip and picture", [draw(2, 56, 56), draw(3, 56, 56)], draw(4, 56, 84), "Who?"),
]


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def traced(bundle):
    """(layer, input) -> rows, in the order told; and the steps."""
    layered, told, steps = LayeredBundle(bundle, 1), {}, []
    prompts = make_prompts(bundle, layered.manifest, EXAMPLES)
    layered.trace(
        prompts,
        list(layered.layers),
        lambda layer, number, x, y: told.__setitem__((layer, number), (x, y)),
        steps.append,
    )
    return told, steps


def test_every_layer_is_told_of_every_input(bundle, traced):
    told, _ = traced
    manifest = read_manifest(bundle)
    names = {c.name for c in manifest.coverage if c.kind == "linear"}
    names.remove("visual.patch_embed.proj")
    vision = {(name, i) for name in names if name.startswith("visual.") for i in range(3)}
    decoder = {(name, i) for name in names if not name.startswith("visual.") for i in range(3)}
    assert set(told) == vision | decoder


def test_outputs_are_what_the_matrices_make_of_the_inputs(bundle, traced):
    told, _ = traced
    manifest = read_manifest(bundle)
    for graph in ("vision", "decoder"):
        model = read_graph(bundle, manifest, graph)
        weights = GraphWeights(bundle, model)
        for linear in list_linears(model.graph):
            matrix = weights.read(linear.weight)
            bias = weights.read(linear.bias) if linear.bias else 0
            for number in range(3):
                x, y = told[linear.name, number]
                np.testing.assert_allclose(y, x @ matrix.T + bias, rtol=0, atol=1e-4)


def test_the_last_rows_are_the_answers_first_logits(bundle, traced):
    told, _ = traced
    side = BundleSide(bundle, 1)
    for number, example in enumerate(EXAMPLES):
        needed = side.observe(example, 1).logits[0]
        np.testing.assert_allclose(told["lm_head", number][1][-1], needed, rtol=0, atol=1e-4)
    side.close()


def test_the_vit_is_told_picture_by_picture_whatever_graph_it_goes_through(bundle, traced):
    told, _ = traced
    side = BundleSide(bundle, 1)
    seen = [visual for example in EXAMPLES for visual in side.observe(example, 0).visuals]
    side.close()
    assert [visual.bucket for visual in seen] == ["84x56", "clip 56x56x1", "56x84"]
    for number, visual in enumerate(seen):
        needed = visual.image_embeds[pick_rows(len(visual.image_embeds), 3)]
        got = told["visual.merger.mlp.2", number][1]
        np.testing.assert_allclose(got, needed, rtol=0, atol=1e-5)


def test_known_answers_are_walked_through_too(bundle):
    layered, lengths = LayeredBundle(bundle, 1), []
    for answers in ((), ("12",)):
        prompts = make_prompts(bundle, layered.manifest, [ask("a", "?", answers=answers)])
        layered.trace(
            prompts, ["lm_head"], lambda _layer, _number, x, _y: lengths.append(len(x)), print
        )
    assert lengths[1] > lengths[0]


def test_steps_are_told_with_the_stage(bundle, traced):
    _, steps = traced
    assert f"{bundle.name}: visual.blocks.1" in steps
    assert steps[-1] == f"{bundle.name}: head"
