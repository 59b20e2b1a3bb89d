"""Plans: which layer becomes what, and that nothing a recipe names is passed over."""

import pytest

from vlmedge.quant.graph.linears import Linear
from vlmedge.quant.quantize.plan import LM_HEAD, make_plan
from vlmedge.quant.recipe.recipe import (
    LayerException,
    LinearRecipe,
    Recipe,
    TableRecipe,
    merge_exception,
)
from vlmedge.quant.recipe.toml import open_recipe


def make_linear(name, in_features=128):
    return Linear(name, "s", f"/{name}/MatMul", "x", "y", f"{name}.weight", None, 64, in_features)


LINEARS = {
    "vision": [
        make_linear("visual.blocks.0.attn.qkv"),
        make_linear("visual.blocks.0.mlp.fc2", 96),
        make_linear("visual.blocks.10.mlp.fc2"),
        make_linear("visual.merger.mlp.0"),
    ],
    "decoder": [
        make_linear("model.layers.0.self_attn.q_proj+k_proj+v_proj"),
        make_linear("model.layers.0.mlp.down_proj", 96),
        make_linear("lm_head"),
    ],
}
NAMES = [linear.name for part in LINEARS.values() for linear in part]
VISION, DECODER, HEAD = (
    LinearRecipe("int8"),
    LinearRecipe("int4-weight", "gptq", 64),
    LinearRecipe("int8-weight", block_size=128),
)


def plan(*layers, **changes):
    parts = {"vision": VISION, "decoder": DECODER, "lm_head": HEAD} | changes
    return make_plan(Recipe("mine", **parts, layers=layers), LINEARS).layers


def test_every_layer_gets_its_parts_recipe_in_the_order_they_run():
    layers = plan()
    assert list(layers) == NAMES
    parts = [VISION] * 4 + [DECODER] * 2 + [HEAD]
    assert [layer.recipe for layer in layers.values()] == parts
    assert [layer.graph for layer in layers.values()] == ["vision"] * 4 + ["decoder"] * 3
    assert {layer.reason for layer in layers.values()} == {"recipe"}


def test_an_exception_changes_format_and_reason_and_leaves_the_rest_to_its_part():
    layers = plan(LayerException("*.down_proj", "int8-weight", "it hurts"))
    changed = layers["model.layers.0.mlp.down_proj"]
    assert changed.recipe == LinearRecipe("int8-weight", "gptq", 64)
    assert changed.reason == "it hurts"
    assert layers["model.layers.0.self_attn.q_proj+k_proj+v_proj"].reason == "recipe"


def test_an_exception_may_bring_its_own_method_and_blocks():
    exception = LayerException("*", "int8-weight", "pattern", "awq", 32)
    assert merge_exception(DECODER, exception) == LinearRecipe("int8-weight", "awq", 32)


def test_of_exceptions_that_fit_the_last_one_counts():
    first = LayerException("visual.*", "float", "first")
    second = LayerException("*.fc2", "int8-dynamic", "second")
    layers = plan(first, second)
    assert layers["visual.blocks.0.attn.qkv"].reason == "first"
    assert layers["visual.blocks.0.mlp.fc2"].recipe.format == "int8-dynamic"
    layers = plan(second, first)
    assert layers["visual.blocks.0.mlp.fc2"].recipe.format == "float"
    assert layers["visual.blocks.0.mlp.fc2"].reason == "first"


def test_names_fit_patterns_from_end_to_end():
    # 10 is no 1 or 0 with something behind it, a dot is a dot, + is a plus.
    assert plan(LayerException("visual.blocks.?.mlp.fc2", "float"))[NAMES[2]].recipe == VISION
    joined = plan(LayerException("*.q_proj+k_proj+v_proj", "float"))
    assert joined["model.layers.0.self_attn.q_proj+k_proj+v_proj"].recipe.format == "float"
    for pattern in ("visual.blocks.1", "blocks.*", "visual.blocks.1*.mlp.fc", "LM_HEAD", "lm.head"):
        with pytest.raises(ValueError, match="fits no layer"):
            plan(LayerException(pattern, "float"))


def test_a_pattern_that_fits_nothing_is_told_with_what_there_is():
    with pytest.raises(ValueError, match=r"'visual\.blocks\.0\.mlp\.down'") as caught:
        plan(LayerException("*", "float"), LayerException("visual.blocks.0.mlp.down", "float"))
    message = str(caught.value)
    assert "recipe mine" in message
    assert "visual.blocks.N.mlp.fc2" in message
    assert message.count("mlp.fc2") == 1  # not once a layer


def test_standard_blocks_that_dont_fill_a_row_fall_back_to_float_and_say_so():
    layers = plan(decoder=LinearRecipe("int4-weight", block_size=64, layout="qdq"))
    fallback = layers["model.layers.0.mlp.down_proj"]
    assert fallback.recipe.format == "float"
    assert fallback.reason == "fallback: 96 inputs are no multiple of 64"
    assert layers["model.layers.0.self_attn.q_proj+k_proj+v_proj"].recipe.format == "int4-weight"
    # MatMulNBits pads its rows itself.
    assert plan()["model.layers.0.mlp.down_proj"].recipe.format == "int4-weight"


def test_a_fallback_is_the_reason_even_where_an_exception_decided():
    qdq = LinearRecipe("float", block_size=64, layout="qdq")
    layers = plan(LayerException("*.down_proj", "int8-weight", "mine"), decoder=qdq)
    assert layers["model.layers.0.mlp.down_proj"].reason.startswith("fallback: 96")


@pytest.mark.parametrize(
    ("changes", "exception", "word"),
    [
        ({"decoder": LinearRecipe("int8", "gptq")}, LayerException("*down*", "fp8"), "gptq"),
        ({"decoder": LinearRecipe("int4-weight", "awq")}, LayerException("*down*", "int8"), "awq"),
        (
            {"decoder": LinearRecipe("int4-weight", block_size=64, layout="qdq")},
            LayerException("*down*", "int4-weight", block_size=32),
            "TensorRT",
        ),
    ],
)
def test_an_exception_that_doesnt_go_with_its_part_names_the_layer(changes, exception, word):
    with pytest.raises(ValueError, match=rf"recipe mine: model\.layers\.0\.mlp\.down_proj.*{word}"):
        plan(exception, **changes)


def test_the_head_stays_fit_to_be_the_table_whatever_exceptions_say():
    shared = {"embedding": TableRecipe("lm_head")}
    assert plan(LayerException(LM_HEAD, "int4-weight"), **shared)[LM_HEAD].recipe.block_size == 128
    for exception in (
        LayerException(LM_HEAD, "float"),
        LayerException("*", "int8"),
        LayerException("lm_*", "int4-weight", method="awq"),
    ):
        with pytest.raises(ValueError, match="recipe mine: the embedding table"):
            plan(exception, **shared)


def test_graphs_can_be_asked_for_their_layers():
    made = make_plan(open_recipe("accurate"), LINEARS)
    assert [layer.linear.name for layer in made.of_graph("vision")] == NAMES[:4]
    assert [layer.linear.name for layer in made.of_graph("decoder")] == NAMES[4:]
    assert made.layers["visual.merger.mlp.0"].reason == "every visual token goes through it"
