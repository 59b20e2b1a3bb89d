"""Walks say what a real check says, of embeddings and logits."""

import pytest

from vlmedge.quant.auto.bundle import write_assembled
from vlmedge.quant.auto.gates import QUICK, QuickGate, check_bundle, plan_check, split_gate
from vlmedge.quant.auto.ladders import Ladders
from vlmedge.quant.gate.gate import Gate, Limit, parse_gate
from vlmedge.quant.gate.metrics import METRICS
from vlmedge.quant.quantize.plan import make_plan
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

RECIPES = {
    "int8 and int4": """name = "a"
[vision]
format = "int8"
ranges = "minmax"
smooth = "off"
[decoder]
format = "int4-weight"
[lm_head]
format = "int8-weight"
[embedding]
format = "lm_head"
[kv_cache]
format = "int8-tensor"
""",
    "fp8": """name = "b"
[vision]
format = "fp8"
smooth = "off"
[decoder]
format = "fp8"
smooth = "off"
[embedding]
format = "fp8"
[attention]
vision = "fp8"
""",
}
ALL_LIMITS = tuple(
    Limit(level, metric, "max" if known.better == "lower" else "min", 0.0)
    for level in QUICK
    for metric, known in METRICS[level].items()
)


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_every_metric_is_that_of_a_real_check(make_bundle, questions, tmp_path, text):
    source = make_bundle("tiny").bundle
    manifest, recipe = read_manifest(source), parse_recipe(text, "test")
    gate = Gate("gate.toml", ALL_LIMITS)
    ladders = Ladders(source, manifest, recipe, questions, tmp_path / "work", 1)
    plan = make_plan(recipe, ladders.linears)
    write_assembled(source, manifest, ladders.mixer, plan, questions, tmp_path / "bundle")
    real = check_bundle(tmp_path / "bundle", source, questions, gate, 1)
    quick = QuickGate(
        source, manifest, ladders.mixer, questions, gate, keep_qdq="fp8" in text, num_threads=1
    )
    got = {row.key: row for row in quick.judge(ladders.levels[0]).rows}
    assert list(got) == [row.key for row in real.rows]
    for row in real.rows:
        assert got[row.key].got == pytest.approx(row.got, rel=0.02, abs=1e-5), row.key
        assert got[row.key].detail == row.detail


def test_a_float_model_is_as_good_as_itself(make_bundle, questions, tmp_path):
    source = make_bundle("tiny").bundle
    manifest, recipe = read_manifest(source), parse_recipe(RECIPES["fp8"], "test")
    gate = split_gate(parse_gate("[image_embeds]\nrel_l2_max = 0\n[logits]\nkl_max = 0\n"))
    assert gate is not None
    ladders = Ladders(source, manifest, recipe, questions, tmp_path / "work", 1)
    quick = QuickGate(
        source, manifest, ladders.mixer, questions, gate, keep_qdq=True, num_threads=1
    )
    assert quick.judge({}).passed
    assert not quick.judge(ladders.levels[0]).passed


def test_limits_are_split_into_those_that_need_no_bundle():
    gate = parse_gate("[image_embeds]\nrel_l2_max = 1\n[tasks]\nloss_max = 1\n", "g.toml")
    quick = split_gate(gate)
    assert quick is not None
    assert [limit.key for limit in quick.limits] == ["image_embeds.rel_l2_max"]
    assert quick.name == "g.toml"
    assert split_gate(parse_gate("[text]\nexact_match_min = 1\n")) is None


def test_a_check_measures_what_the_gate_limits_and_no_more():
    gate = parse_gate("[before_merger]\ncosine_min = 1\n[text]\nexact_match_min = 1\n")
    assert plan_check(gate, 2).levels == ("settings", "embeddings", "texts")
    assert plan_check(gate, 2).num_threads == 2
    gate = parse_gate("[speed]\nvision_max = 1\n[layers]\nsqnr_db_min = 1\n[tasks]\nloss_max = 1\n")
    assert plan_check(gate, 0).levels == ("settings", "tasks", "speed", "layers")
    assert plan_check(gate, 0).num_threads is None
