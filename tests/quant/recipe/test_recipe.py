"""Recipes: what a file says, what is refused in it, and that writing one loses nothing."""

import dataclasses
import json
from importlib.resources import files
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmedge.quant.recipe.preset_names import list_presets
from vlmedge.quant.recipe.recipe import (
    NEXT_HIGHER,
    STATIC,
    WEIGHT_ONLY,
    AttentionRecipe,
    BlockScales,
    CacheRecipe,
    Format,
    LayerException,
    Layout,
    LinearRecipe,
    Method,
    Recipe,
    Shift,
    TableRecipe,
    merge_exception,
)
from vlmedge.quant.recipe.toml import format_recipe, open_recipe, parse_recipe
from vlmedge.quant.rounding.ranges import RangeMethod
from vlmedge.quant.rounding.weight_only import BLOCK_SIZES
from vlmedge.runtime.files.plain_text import find_control

WHOLE = """
name = "mine"
description = "all there is"
[vision]
format = "int8"
method = "gptq"
ranges = "percentile"
percentile = 99.9
smooth = 0.5
[decoder]
format = "int4-weight"
method = "awq"
block_size = 128
layout = "qdq"
[lm_head]
format = "int8-weight"
block_size = 32
block_scales = "positive"
[embedding]
format = "lm_head"
[kv_cache]
format = "int8-channel"
[attention]
vision = "fp8"
[[layers]]
pattern = "visual.merger.*"
format = "int8-weight"
reason = "decides every visual token"
[[layers]]
pattern = "*.down_proj"
format = "int4-weight"
method = "nearest"
block_size = 64
"""


def test_a_recipe_is_what_its_file_says():
    assert parse_recipe(WHOLE, "mine.toml") == Recipe(
        name="mine",
        description="all there is",
        vision=LinearRecipe("int8", "gptq", ranges="percentile", percentile=99.9, smooth=0.5),
        decoder=LinearRecipe("int4-weight", "awq", 128, "qdq"),
        lm_head=LinearRecipe("int8-weight", block_size=32, block_scales="positive"),
        embedding=TableRecipe("lm_head"),
        kv_cache=CacheRecipe("int8-channel"),
        attention=AttentionRecipe("fp8"),
        layers=(
            LayerException("visual.merger.*", "int8-weight", "decides every visual token"),
            LayerException("*.down_proj", "int4-weight", "pattern", "nearest", 64),
        ),
    )


def test_what_a_recipe_leaves_out_stays_float():
    recipe = parse_recipe('name = "nothing"', "nothing.toml")
    assert {recipe.vision.format, recipe.decoder.format, recipe.lm_head.format} == {"float"}
    assert recipe.embedding.format == recipe.kv_cache.format == recipe.attention.vision == "float"
    assert not recipe.needs_data


PLAIN = st.characters(
    exclude_categories=["Cs", "Cc", "Zl", "Zp"],
    exclude_characters=[c for c in map(chr, range(0x600, 0x2070)) if find_control(c)],
)
texts = st.text(PLAIN)
names = st.text(PLAIN.filter(lambda character: character != "/"), min_size=1)
linears = st.builds(
    LinearRecipe,
    format=st.sampled_from(get_args(Format)),
    method=st.sampled_from(get_args(Method)),
    block_size=st.sampled_from(BLOCK_SIZES),
    layout=st.sampled_from(get_args(Layout)),
    ranges=st.sampled_from(get_args(RangeMethod)),
    percentile=st.floats(50, 100, exclude_min=True),
    smooth=st.one_of(st.floats(0, 1), st.sampled_from(["off", "search"])),
    shift=st.sampled_from(get_args(Shift)),
    block_scales=st.sampled_from(get_args(BlockScales)),
)
exceptions = st.builds(
    LayerException,
    pattern=texts.filter(bool),
    format=st.sampled_from(get_args(Format)),
    reason=texts,
    method=st.one_of(st.none(), st.sampled_from(get_args(Method))),
    block_size=st.one_of(st.none(), st.sampled_from(BLOCK_SIZES)),
)


@st.composite
def recipes(draw):
    """Any recipe that can be made."""
    try:
        return Recipe(
            name=draw(names.filter(str.isprintable)),
            description=draw(texts),
            vision=draw(linears),
            decoder=draw(linears),
            lm_head=draw(linears),
            embedding=draw(st.builds(TableRecipe, st.sampled_from(["float", "int8", "lm_head"]))),
            kv_cache=draw(st.builds(CacheRecipe, st.sampled_from(["float", "int8-tensor"]))),
            attention=draw(st.builds(AttentionRecipe, st.sampled_from(["float", "fp8"]))),
            layers=tuple(draw(st.lists(exceptions, max_size=3))),
        )
    except ValueError:
        return Recipe(draw(names.filter(str.isprintable)), draw(texts))


@settings(deadline=None)
@given(recipes())
@example(Recipe("x", 'a "quoted"\\ \n\ttext'))
@example(Recipe("x", layers=(LayerException('"', "float", "\\"),)))
@example(Recipe("x", vision=LinearRecipe("int8", percentile=50.00000000000001, smooth=1e-7)))
@example(Recipe("x", vision=LinearRecipe("int8", smooth=1e-300)))
def test_a_written_recipe_reads_back_as_the_same(recipe):
    assert parse_recipe(format_recipe(recipe), "again") == recipe


@pytest.mark.parametrize("place", ["name", "description", "pattern", "reason"])
def test_controls_are_refused_before_they_reach_a_manifest(hostile_control, place):
    layer = {"pattern": "x", "format": "float", "reason": "y"}
    texts = {"name": "x", "description": "y"}
    (layer if place in layer else texts)[place] = hostile_control.encode(
        "utf-8", "replace"
    ).decode()
    if hostile_control == "x\ud800y" or (place == "description" and hostile_control[1:2] == "\n"):
        return  # TOML has no such character; a description may have lines
    recipe = "".join(f"{key} = {json.dumps(text)}\n" for key, text in texts.items())
    recipe += "[[layers]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in layer.items())
    with pytest.raises(ValueError, match=r"U\+|printable") as caught:
        parse_recipe(recipe, "mine.toml")
    assert "\n" not in str(caught.value)


toml_words = st.sampled_from(
    [
        *("name", "vision", "decoder", "lm_head", "layers", "embedding", "kv_cache", "attention"),
        *("format", "method", "smooth", "pattern", "block_size", "percentile", "description"),
        *('"int8"', '"x"', "3", "1e999", "nan", "true", "1979-05-27", "[", "]", "[[", "]]", "="),
        *("\n", "{", "}", ".", ",", "'", '"', "#", "0x", "-", '"\\u0000"'),
    ]
)


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(toml_words, max_size=30).map(" ".join)))
@example("a = " + "[" * 5000)
@example("name = 1" + "0" * 5000)
@example('"\\n" = 1')
def test_any_text_is_a_recipe_or_a_value_error_of_one_line(text):
    message = ""
    try:
        parse_recipe(text, "any.toml")
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


def test_presets_are_the_files_that_come_with_the_package():
    folder = files("vlmedge.quant.recipe") / "presets"
    stems = sorted(path.name[:-5] for path in folder.iterdir() if path.name.endswith(".toml"))
    assert list_presets() == stems == ["accurate", "cpu", "orin", "smallest", "thor"]
    for name in stems:
        recipe = open_recipe(name)
        assert recipe.name == name
        assert recipe.description


def test_presets_need_data_where_something_is_calibrated():
    needs = {name: open_recipe(name).needs_data for name in list_presets()}
    assert needs == {
        "accurate": False,
        "cpu": False,
        "orin": True,
        "smallest": True,
        "thor": True,
    }


def test_presets_hold_what_their_devices_can_run():
    orin, thor = open_recipe("orin"), open_recipe("thor")
    assert (orin.vision.format, orin.decoder.format) == ("int8", "int4-weight")
    assert "fp8" not in str(orin)  # its GPU has none
    assert (thor.vision.format, thor.decoder.format) == ("fp8", "fp8")


def test_presets_that_tensorrt_reads_have_positive_block_scales():
    positive = {name: [] for name in list_presets()}
    for name, parts in positive.items():
        recipe = open_recipe(name)
        for part in ("vision", "decoder", "lm_head"):
            if getattr(recipe, part).has_positive_scales:
                parts.append(part)
    # orin's ViT is int8: what --auto or an exception gives back is int8-weight.
    every = ["vision", "decoder", "lm_head"]
    expected = {"accurate": [], "cpu": [], "orin": every, "smallest": every, "thor": ["lm_head"]}
    assert positive == expected


def test_block_scales_are_signed_unless_asked_or_in_tensorrts_layout_and_exceptions_inherit_them():
    text = 'name = "x"\n[decoder]\nformat = "int4-weight"\n{}\n'
    exception = LayerException("*", "int8-weight")
    for key, positive in (
        ("", False),
        ('block_scales = "signed"', False),
        ('block_scales = "positive"', True),
        ('layout = "qdq"', True),
    ):
        part = parse_recipe(text.format(key), "x.toml").decoder
        assert part.has_positive_scales is positive
        assert merge_exception(part, exception).has_positive_scales is positive


def test_the_text_that_names_a_stopped_run_tells_positive_scales_from_signed():
    texts = {
        format_recipe(Recipe("x", decoder=LinearRecipe("int4-weight", block_scales=scales)))
        for scales in get_args(BlockScales)
    }
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({"vision": LinearRecipe("int8")}, True),
        ({"decoder": LinearRecipe("fp8")}, True),
        ({"lm_head": LinearRecipe("int8-weight", "gptq")}, True),
        ({"decoder": LinearRecipe("int4-weight", "awq")}, True),
        ({"kv_cache": CacheRecipe("int8-tensor")}, True),
        ({"attention": AttentionRecipe("fp8")}, True),
        ({"layers": (LayerException("*", "int8"),)}, True),
        ({"layers": (LayerException("*", "int4-weight", method="gptq"),)}, True),
        # The exception leaves the method to its layers' part: any of the three.
        (
            {
                "decoder": LinearRecipe("float", "gptq"),
                "layers": (LayerException("*", "int4-weight"),),
            },
            True,
        ),
        ({"vision": LinearRecipe("int8-dynamic"), "decoder": LinearRecipe("int4-weight")}, False),
        ({"decoder": LinearRecipe("float", "gptq")}, False),
        ({"embedding": TableRecipe("fp8")}, False),
    ],
)
def test_data_is_needed_where_activations_decide(change, needs):
    assert Recipe("x", **change).needs_data is needs


def test_a_recipe_is_a_preset_or_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE)
    assert open_recipe(path) == open_recipe(str(path)) == parse_recipe(WHOLE, "")
    for name, hint in (("oron", "did you mean orin"), ("none.toml", "accurate, cpu, orin")):
        with pytest.raises(ValueError, match=hint):
            open_recipe(name)
    with pytest.raises(ValueError, match="no recipe"):
        open_recipe(tmp_path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ValueError, match=r"mine\.toml is not UTF-8"):
        open_recipe(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="this is no recipe"):
        open_recipe(path)


def test_a_name_that_no_file_can_have_is_no_recipe():
    for name in ("", "\0", "x" * 5000):
        with pytest.raises(ValueError, match="is no recipe"):
            open_recipe(name)


def test_a_layer_is_given_back_step_by_step_until_it_is_float():
    for start in get_args(Format):
        steps = [start]
        while steps[-1] != "float":
            steps.append(NEXT_HIGHER[steps[-1]])
            assert len(steps) == len(set(steps))
        if start in STATIC:  # after the first step nothing has to be calibrated
            assert steps[1] not in STATIC
    assert set(WEIGHT_ONLY.values()) == {4, 8}


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        open_recipe("orin").name = "other"
