"""A recipe that is bad for one layer: `sensitivity` and `--auto` name that layer, in any place."""

import dataclasses

import pytest

from vlmedge.quant.auto.search_recipe import search_recipe
from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LayerException
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.quant.sensitivity.damage import ALL
from vlmedge.quant.sensitivity.measure import measure_sensitivity

SOUND = parse_recipe(
    'name = "sound"\n[vision]\nformat = "int8-weight"\nblock_size = 32\n'
    '[decoder]\nformat = "int8-weight"\nblock_size = 32\n'
    '[lm_head]\nformat = "int8-weight"\nblock_size = 32\n',
    "test",
)
PLACES = (
    "visual.blocks.1.attn.qkv",
    "visual.blocks.0.mlp.fc2",
    "visual.merger.mlp.0",
    "model.layers.0.self_attn.q_proj+k_proj+v_proj",
    "model.layers.1.mlp.down_proj",
    "lm_head",
)
CHECK = CheckPlan(("embeddings", "logits"), num_threads=1)


def spoil(layer):
    """4 bits for one layer, whose error is ten times that of 8."""
    bad = LayerException(layer, "int4-weight", block_size=32, method="nearest")
    return dataclasses.replace(SOUND, layers=(bad,))


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny-7b").bundle


@pytest.fixture(scope="module")
def gate(source, questions, tmp_path_factory):
    """What the sound recipe holds with room to spare."""
    bundle = tmp_path_factory.mktemp("sound") / "bundle"
    quantize_bundle(source, bundle, SOUND, num_threads=1)
    found = run_check(bundle, source, questions, CHECK)
    error = max(f.rel_l2 for f in found.embeddings if f.level == "image_embeds")
    kls = [kl for finding in found.logits for kl in finding.kl]
    return parse_gate(
        f"[image_embeds]\nrel_l2_max = {2 * error}\n"
        f"[logits]\nkl_mean_max = {2 * sum(kls) / len(kls)}\n"
    )


@pytest.mark.parametrize("layer", PLACES)
def test_the_bad_layer_does_most_damage(source, questions, tmp_path, layer):
    found = measure_sensitivity(source, spoil(layer), questions, work=tmp_path, num_threads=1)
    assert found.ranked[0].layer == layer
    # In what its half of the model puts out it stands alone
    measure = "embeds_rel_l2" if layer.startswith("visual.") else "kl_mean"
    alone = {row.layer: getattr(row.alone[ALL], measure) or 0.0 for row in found.rows}
    others = [value for name, value in alone.items() if name != layer]
    assert alone[layer] > 2 * max(others)
    assert getattr(found.ranked[0].rest[ALL], measure) < alone[layer]


@pytest.mark.parametrize("layer", PLACES)
def test_exactly_the_bad_layer_is_given_back(source, questions, gate, tmp_path, layer):
    found = search_recipe(
        source, spoil(layer), questions, gate, num_threads=1, work=tmp_path / "work"
    )
    assert found.passed
    assert [name for name, *_ in found.returned] == [layer]
