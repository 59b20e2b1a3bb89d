"""Scales that quantization moved between layers are found again; its own record is the oracle."""

import numpy as np
import pytest

from vlmedge.quant.compare.gauges import find_gauges, plain_gauges
from vlmedge.quant.compare.layer_walk import LayeredBundle
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.graph.folding import Fold
from vlmedge.quant.quantize.calibration import hash_model, read_calibration
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LinearRecipe, Recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def migrated(source, tmp_path_factory):
    """Bundle and calibration of INT8 with every outlier moved."""
    from PIL import Image

    levels = np.random.default_rng(0).integers(0, 256, (84, 112, 3), np.uint8)
    parts = [{"type": "image", "image": Image.fromarray(levels)}, {"type": "text", "text": "?"}]
    data = DataSet("one", "0" * 64, (Example("a", ({"role": "user", "content": parts},)),), {})
    int8 = LinearRecipe("int8", smooth=1.0, shift="off")
    folder = tmp_path_factory.mktemp("migrated")
    quantize_bundle(
        source,
        folder / "bundle",
        Recipe("all", vision=int8, decoder=int8),
        data,
        calibration_file=folder / "calibration.json",
        num_threads=1,
    )
    model = hash_model(read_manifest(source))
    return folder / "bundle", read_calibration(folder / "calibration.json", model)


def test_the_scales_of_every_migrated_input_are_found(source, migrated):
    bundle, calibration = migrated
    ours, theirs = LayeredBundle(bundle, 1), LayeredBundle(source, 1)
    gauges = find_gauges(ours.layers, ours.find_folds(), ours, theirs)
    moved = set()
    for name, record in calibration.layers.items():
        found = record.range.scales if record.range else None
        scales = np.ones_like(gauges[name].input) if found is None else found
        # rows of 32 to 96 weights, each rounded to 8 bits: the mean error is far below 1 %
        np.testing.assert_allclose(gauges[name].input, scales, rtol=0.01, err_msg=name)
        if (scales != 1).any():
            moved.add(name)
    rows = {name for name, fold in ours.find_folds().items() if fold.rows}
    assert len(moved & rows) > 2
    assert len(moved - rows) > 1


def test_outputs_that_hold_a_later_layers_scales_are_found(source, migrated):
    bundle, calibration = migrated
    ours, theirs = LayeredBundle(bundle, 1), LayeredBundle(source, 1)
    gauges = find_gauges(ours.layers, ours.find_folds(), ours, theirs)
    spec = read_manifest(source).vision
    scales = calibration.layers["visual.blocks.1.attn.proj"].range.scales
    assert len(np.unique(scales)) > 1
    output = gauges["visual.blocks.1.attn.qkv"].output
    np.testing.assert_allclose(output[-spec.embed_dim :], scales, rtol=0.01)
    np.testing.assert_array_equal(output[: -spec.embed_dim], 1)
    np.testing.assert_array_equal(gauges["visual.blocks.0.mlp.fc1"].output, 1)


def test_nothing_was_moved_between_a_float_bundle_and_itself(source):
    bundle = LayeredBundle(source, 1)
    for name, gauge in find_gauges(bundle.layers, bundle.find_folds(), bundle, bundle).items():
        np.testing.assert_allclose(gauge.input, 1, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(gauge.output, 1, rtol=1e-6, err_msg=name)


def test_a_channel_that_is_never_used_has_the_factor_1(source):
    bundle = LayeredBundle(source, 1)
    layers = {"visual.blocks.0.attn.qkv": bundle.layers["visual.blocks.0.attn.qkv"]}
    folds = {"visual.blocks.0.attn.qkv": Fold(np.arange(32), vectors=("norm",))}

    class Norms:
        def __init__(self, weight, columns):
            self.weight = np.array(weight, np.float32)
            self.matrix = np.ones((96, 32), np.float32) * np.array(columns, np.float32)

        def read_vector(self, name):
            return self.weight

        def read_matrix(self, layer):
            return self.matrix

    ours = Norms([0.0] * 16 + [2.0] * 16, [1.0] * 16 + [0.5] * 16)
    theirs = Norms([0.0] * 8 + [1.0] * 24, [1.0] * 32)
    gauge = find_gauges(layers, folds, ours, theirs)["visual.blocks.0.attn.qkv"]
    assert gauge.input.tolist() == [1.0] * 16 + [0.5] * 16
    assert plain_gauges(layers)["visual.blocks.0.attn.qkv"].output.tolist() == [1.0] * 96
