"""Moves: their order, what they make of a choice, and of a recipe."""

import pytest

from vlmedge.quant.auto.moves import (
    Move,
    apply_moves,
    is_fixed,
    list_returned,
    make_recipe,
    name_group,
    next_format,
    order_moves,
)
from vlmedge.quant.recipe.toml import format_recipe, parse_recipe

CACHE = [f"model.layers.{i}.self_attn.cache" for i in range(2)]
FC1, DOWN = "visual.blocks.0.mlp.fc1", "model.layers.0.mlp.down_proj"
CHOICE = {"model.embed_tokens": "fp8", FC1: "int8", DOWN: "int4-weight"} | dict.fromkeys(
    CACHE, "int8-tensor"
)


def test_the_best_share_of_damage_for_the_cost_comes_first():
    moves = [
        Move("dear", "int8", "float", 0.6, 600.0),
        Move("cheap", "int8", "float", 0.3, 100.0),
        Move("useless", "int8", "float", 0.0, 100.0),
    ]
    assert [move.layer for move in order_moves(moves)] == ["cheap", "dear", "useless"]


def test_a_step_that_is_worth_less_than_the_next_is_taken_with_it():
    moves = [
        Move("a", "int4-weight", "int8-weight", 0.01, 100.0),
        Move("a", "int8-weight", "float", 0.5, 100.0),
        Move("b", "int4-weight", "int8-weight", 0.3, 100.0),
        Move("b", "int8-weight", "float", 0.1, 100.0),
    ]
    assert order_moves(moves) == [
        Move("b", "int4-weight", "int8-weight", 0.3, 100.0),
        Move("a", "int4-weight", "float", 0.51, 200.0),
        Move("b", "int8-weight", "float", 0.1, 100.0),
    ]


def test_a_step_that_costs_nothing_does_not_come_before_every_other():
    """int8 weights take hardly a bit more than int8: a thousandth of the harm is no reason."""
    free = Move("free", "int8", "int8-weight", 0.001, 0.0)
    faster = Move("faster", "int8", "int8-weight", 0.002, -3.0)
    bad = Move("bad", "int8", "int8-weight", 0.9, 50.0)
    assert order_moves([free, faster, bad]) == [bad, faster, free]
    free = Move("free", "int8", "int8-weight", 0.5, 0.0)
    assert order_moves([bad, free]) == [free, bad]


def test_moves_change_layers_and_whole_parts():
    moves = [
        Move(DOWN, "int8-weight", "float", 0.1, 1.0),  # not where the layer is: passed over
        Move(FC1, "int8", "float", 0.1, 1.0),
        Move("kv_cache", "int8-tensor", "int8-channel", 0.1, 1.0),
    ]
    changed = apply_moves(CHOICE, moves)
    assert changed == CHOICE | {FC1: "float"} | dict.fromkeys(CACHE, "int8-channel")
    assert list_returned(CHOICE, moves) == [
        (FC1, "int8", "float"),
        ("kv_cache", "int8-tensor", "int8-channel"),
    ]


def test_the_recipe_says_what_was_given_back_and_why():
    recipe = parse_recipe(
        """name = "r"
[vision]
format = "int8"
[kv_cache]
format = "int8-tensor"
[attention]
vision = "fp8"
[embedding]
format = "fp8"
[[layers]]
pattern = "visual.merger.*"
format = "float"
""",
        "test",
    )
    returned = [
        (FC1, "int8", "int8-weight"),
        ("kv_cache", "int8-tensor", "int8-channel"),
        ("attention", "fp8", "float"),
        ("embedding", "fp8", "float"),
    ]
    made = make_recipe(recipe, returned, {FC1: 'auto: own SQNR 6.1 dB, gate text."a"'})
    read = parse_recipe(format_recipe(made), "written")
    assert read == made
    assert read.layers[0] == recipe.layers[0]
    assert (read.layers[1].pattern, read.layers[1].format) == (FC1, "int8-weight")
    assert read.layers[1].reason == 'auto: own SQNR 6.1 dB, gate text."a"'
    assert read.kv_cache.format == "int8-channel"
    assert (read.attention.vision, read.embedding.format) == ("float", "float")
    assert read.vision == recipe.vision
    assert read.name == "r-auto"
    assert make_recipe(made, returned[:1], {FC1: "again"}).name == "r-auto"
    assert make_recipe(recipe, [], {}) == recipe


def test_a_head_that_is_the_table_stays_packed():
    shared = parse_recipe(
        'name = "r"\n[lm_head]\nformat = "int4-weight"\n[embedding]\nformat = "lm_head"\n', "test"
    )
    assert not is_fixed(shared, "lm_head", "int8-weight")
    assert is_fixed(shared, "lm_head", "float")
    assert not is_fixed(shared, DOWN, "float")
    assert not is_fixed(parse_recipe('name = "r"\n', "test"), "lm_head", "float")


@pytest.mark.parametrize(
    ("name", "group", "format", "after"),
    [
        (FC1, FC1, "int8", "int8-weight"),
        (DOWN, DOWN, "int8-weight", "float"),
        (CACHE[1], "kv_cache", "int8-tensor", "int8-channel"),
        (CACHE[0], "kv_cache", "int8-channel", "float"),
        ("visual.blocks.3.attn.products", "attention", "fp8", "float"),
        ("model.embed_tokens", "embedding", "lm_head", "float"),
    ],
)
def test_every_kind_has_a_step_up(name, group, format, after):
    assert name_group(name) == group
    assert next_format(group, format) == after
