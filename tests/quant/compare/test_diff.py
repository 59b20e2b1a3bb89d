"""Planted errors are found where they are, of the size that they have."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.compare.diff import (
    compare_layers,
    find_departure,
    find_not_finite,
    trace_reference,
)
from vlmedge.quant.compare.findings import LayerFinding
from vlmedge.quant.compare.layer_rows import RowShelf
from vlmedge.quant.compare.layer_walk import LayeredBundle
from vlmedge.quant.compare.shelf import ArrayShelf
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.gate.unusual import find_unusual
from vlmedge.quant.graph.files import locate, read_graph
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LayerException, LinearRecipe, Recipe
from vlmedge.runtime import BundleError
from vlmedge.runtime.bundle.manifest_file import read_manifest


def make_example(name, *sizes):
    rng = np.random.default_rng(len(name))
    content = [
        {"type": "image", "image": Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))}
        for w, h in sizes
    ]
    return Example(name, ({"role": "user", "content": [*content, {"type": "text", "text": "?"}]},))


EXAMPLES = [make_example("wide", (84, 56)), make_example("tall!", (56, 112)), make_example("text")]


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


def measure(bundle, reference, examples=EXAMPLES):
    ours = LayeredBundle(bundle, 1)
    with ArrayShelf() as arrays:
        theirs = LayeredBundle(reference, 1)
        traced = trace_reference(ours, theirs, examples, RowShelf(arrays), lambda step: None)
        return compare_layers(ours, traced, lambda step: None)


def change_weight(source, target, layer, change):
    """A copy of a bundle with one matrix changed in place."""
    shutil.copytree(source, target)
    manifest = read_manifest(target)
    graph = "vision" if layer.startswith("visual.") else "decoder"
    model = read_graph(target, manifest, graph)
    tensor = next(t for t in model.graph.initializer if t.name == f"{layer}.weight")
    file, offset, length = locate(tensor)
    with (target / file).open("r+b") as data:
        data.seek(offset)
        weight = np.frombuffer(data.read(length), np.float32).reshape(tensor.dims)
        data.seek(offset)
        data.write(change(weight.copy()).astype(np.float32).tobytes())
    return target


def test_a_bundle_does_not_differ_from_itself(source):
    found = measure(source, source)
    assert {(f.own_sqnr_db, f.sqnr_db) for f in found} == {(200.0, 200.0)}
    vision = [f.bucket for f in found if f.layer == "visual.blocks.0.attn.qkv"]
    decoder = [f.bucket for f in found if f.layer == "lm_head"]
    assert sorted(vision) == ["56x112", "84x56"]
    assert sorted(decoder) == ["56x112", "84x56", "text"]


def test_a_changed_matrix_is_to_blame_alone_and_all_layers_behind_it_suffer(source, tmp_path):
    layer = "visual.blocks.1.attn.proj"
    # Half of every output but its bias is gone: 6 dB.
    bundle = change_weight(source, tmp_path / "changed", layer, lambda weight: weight / 2)
    found = measure(bundle, source)
    names = list(dict.fromkeys(finding.layer for finding in found))
    place = names.index(layer)
    for finding in found:
        is_changed = finding.layer == layer
        assert (finding.own_sqnr_db < 200) == is_changed, finding
        is_behind = names.index(finding.layer) >= place and finding.bucket != "text"
        assert (finding.sqnr_db < 190) == is_behind, finding
        if is_changed:
            assert finding.own_sqnr_db == pytest.approx(6, abs=2)
            assert finding.sqnr_db == pytest.approx(finding.own_sqnr_db, abs=0.01)
    assert find_departure(found, 0.01).layer == layer
    assert {finding.layer for finding in find_unusual(found)} == {layer}


def test_the_own_error_is_that_of_the_changed_matrix_on_the_references_input(source, tmp_path):
    layer = "model.layers.1.mlp.gate_proj+up_proj"
    noise = np.random.default_rng(5).standard_normal((192, 64)).astype(np.float32) * 1e-3
    bundle = change_weight(source, tmp_path / "noisy", layer, lambda weight: weight + noise)
    rows = []
    theirs = LayeredBundle(source, 1)
    from vlmedge.quant.graph.feeds import make_prompts

    theirs.trace(
        make_prompts(source, theirs.manifest, EXAMPLES[:1]),
        [layer],
        lambda _layer, _number, x, y: rows.append((x, y)),
        lambda step: None,
    )
    ((x, y),) = rows
    needed = 20 * np.log10(np.linalg.norm(y) / np.linalg.norm(x @ noise.T))
    (found,) = [f for f in measure(bundle, source, EXAMPLES[:1]) if f.layer == layer]
    assert found.own_sqnr_db == pytest.approx(needed, abs=0.01)


@pytest.fixture(scope="module")
def int8_with_a_hole(source, tmp_path_factory):
    """INT8 everywhere with migration, and one layer of INT4 in long blocks."""
    target = tmp_path_factory.mktemp("hole") / "bundle"
    int8 = LinearRecipe("int8", smooth=0.5)
    weak = LayerException("visual.blocks.1.mlp.fc1", "int4-weight", block_size=32)
    recipe = Recipe("hole", vision=int8, decoder=int8, lm_head=int8, layers=(weak,))
    data = DataSet("pictures", "0" * 64, tuple(EXAMPLES), {})
    quantization = quantize_bundle(source, target, recipe, data, num_threads=1)
    return target, quantization


def test_own_errors_are_those_that_quantization_measured(int8_with_a_hole, source):
    # The quantizer knows the scales it moved; the walk has to find them. Other rows: 2 dB apart.
    bundle, quantization = int8_with_a_hole
    worst = {}
    for finding in measure(bundle, source):
        worst[finding.layer] = min(worst.get(finding.layer, 200), finding.own_sqnr_db)
    assert set(worst) == set(quantization.errors)
    for layer, error in quantization.errors.items():
        assert worst[layer] == pytest.approx(-20 * np.log10(error.chosen), abs=3), layer


def test_the_weak_layer_sticks_out(int8_with_a_hole, source):
    bundle, _ = int8_with_a_hole
    found = measure(bundle, source)
    assert find_unusual(found)[0].layer == "visual.blocks.1.mlp.fc1"
    precisions = {finding.layer: finding.precision for finding in found}
    assert precisions["visual.blocks.1.mlp.fc1"] == "int4 block 32"
    assert precisions["visual.blocks.1.mlp.fc2"] == "int8 static"


def test_two_quantized_bundles_can_be_compared_as_well(int8_with_a_hole):
    bundle, _ = int8_with_a_hole
    assert {f.own_sqnr_db for f in measure(bundle, bundle)} == {200.0}


def test_another_model_is_an_error(make_bundle, source):
    with pytest.raises(ValueError, match="two different models"):
        measure(source, make_bundle("tiny-7b").bundle)


def test_the_layer_that_first_makes_no_numbers_is_named(source, tmp_path):
    def spoil(weight):
        weight[3, 5] = np.nan
        return weight

    layer = "visual.blocks.1.mlp.fc1"
    bundle = change_weight(source, tmp_path / "nan", layer, spoil)
    assert "visual.blocks.1" in find_not_finite(bundle, EXAMPLES[0])
    assert find_not_finite(source, EXAMPLES[0]) == ""
    with pytest.raises(BundleError, match=f"{layer} makes NaN"):
        measure(bundle, source)


def test_the_first_layer_beyond_the_tolerance_is_named_in_its_worst_bucket():
    def make(layer, bucket, sqnr_db):
        return LayerFinding(layer, "int8 static", bucket, 50.0, sqnr_db)

    found = [
        make("a", "28x28", 45.0),
        make("a", "56x56", 41.0),
        make("b", "28x28", 39.0),
        make("b", "56x56", 38.0),
        make("c", "28x28", 10.0),
    ]
    assert find_departure(found, 0.01) == found[3]
    assert find_departure(found, 10 ** (-42 / 20)) == found[1]
    assert find_departure(found, 1.0) is None
    assert find_departure([], 0.01) is None
