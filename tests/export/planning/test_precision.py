"""Recipes and manifests say the same of every layer."""

import pytest

from vlmedge.export.lowering.targets import TARGETS
from vlmedge.export.planning.precision import (
    LayerPrecision,
    ModelPrecision,
    list_recipes,
    lower_precision,
    parse_precision,
    plan_precision,
    read_coverage,
    read_precision,
)
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

PRESETS = ("accurate", "cpu", "orin", "smallest", "thor")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("float32", LayerPrecision("float32", 32)),
        ("bfloat16", LayerPrecision("bfloat16", 16)),
        ("int8 static", LayerPrecision("static", 8)),
        ("int8 dynamic", LayerPrecision("dynamic", 8)),
        ("float8_e4m3fn", LayerPrecision("fp8", 8)),
        ("int4 block 64", LayerPrecision("weights", 4, 64)),
        ("int8 per row", LayerPrecision("weights", 8)),
    ],
)
def test_words_of_manifests_become_numbers(words, expected):
    assert parse_precision(words) == expected
    assert expected.is_float == words.endswith(("float32", "float16"))


@pytest.mark.parametrize("words", ["", "int2 block 64", "int4 block", "int8", "int4 block 64 x"])
def test_words_of_no_manifest_are_refused(words):
    with pytest.raises(ValueError, match="precision is"):
        parse_precision(words)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_becomes_what_the_quantizer_writes(quantized, read_shapes, name):
    made = quantized(name)
    wanted = read_coverage(read_manifest(made.bundle).coverage, name)
    got = read_precision(name, read_shapes(made.checkpoint), "float32")
    assert dict(got.layers or {}) == wanted.layers
    assert (got.table, got.cache, got.vision_attention) == (
        wanted.table,
        wanted.cache,
        wanted.vision_attention,
    )


@pytest.mark.parametrize("target", ["jetpack-6.2", "tensorrt-rtx"])
@pytest.mark.parametrize("recipe", ["float", "accurate", "orin"])
def test_a_lowered_recipe_stores_what_the_exporter_notes(lowered, read_shapes, recipe, target):
    """The exporter's coverage names a block by its recipe even where it is cut: scales tell."""
    made = lowered(recipe, target)
    wanted = read_coverage(read_manifest(made.bundle).coverage, recipe).layers or {}
    shapes = read_shapes(made.checkpoint)
    got = lower_precision(
        read_precision(recipe, shapes, "bfloat16"), shapes, TARGETS[target], "bfloat16"
    ).layers
    assert got is not None
    assert set(got) == set(wanted)
    for layer, words in wanted.items():
        ours, theirs = parse_precision(got[layer]), parse_precision(words)
        assert (ours.kind, ours.bits) == (theirs.kind, theirs.bits), layer
        assert theirs.block_size % max(1, ours.block_size) == 0


def test_float_needs_no_recipe(model):
    assert read_precision("float", model().shapes, "bfloat16") == ModelPrecision()


def test_presets_are_listed():
    assert list_recipes() == list(PRESETS)


def test_an_unknown_recipe_is_named(model):
    with pytest.raises(ValueError, match="orim is no recipe: did you mean orin"):
        read_precision("orim", model().shapes, "bfloat16")


def test_a_pattern_that_fits_no_layer_is_refused(model):
    recipe = parse_recipe(
        'name = "x"\n[[layers]]\npattern = "visual.nowhere.*"\nformat = "float"\n', "x"
    )
    with pytest.raises(ValueError, match="fits no layer"):
        plan_precision(recipe, model().shapes, "float32")


def test_an_int8_cache_can_not_be_lowered(model):
    precision = ModelPrecision(cache="int8-channel")
    with pytest.raises(ValueError, match="KV cache as int8"):
        lower_precision(precision, model().shapes, TARGETS["jetpack-6.2"], "bfloat16")
