"""Blame is measured: the layers whose return repairs a failed limit, and no others."""

import dataclasses
import math
import shutil

import pytest

from vlmedge.quant.blame.levels import choose_worst, measure_blame
from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.compare.findings import LayerFinding
from vlmedge.quant.gate.blame import MAX_GROUPS, MAX_SINGLES, describe_blame, find_cause
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.unusual import find_unusual
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LayerException
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.quant.report.blame_lines import list_blame

DECODER = [f"model.layers.{i}.mlp.down_proj" for i in range(8)]
VISION = [f"visual.blocks.{i}.mlp.fc2" for i in range(8)]


def make_layers(harmful_db=None):
    """INT4 at 20 dB in the decoder, INT8 at 40 in the ViT, but for those given."""
    own = {name: 20.0 for name in DECODER} | {name: 40.0 for name in VISION} | (harmful_db or {})
    return tuple(
        LayerFinding(name, "int4 block 64" if name in DECODER else "int8 static", "x", db, db - 1)
        for name, db in own.items()
    )


def blame(harm, layers=None):
    """Of a model whose damage is the sum of what its layers do; the tries are counted."""
    layers = layers or make_layers()
    tries = []

    def measure(given_back):
        tries.append(given_back)
        damage = sum(value for name, value in harm.items() if name not in given_back)
        return damage, damage

    found = find_cause("logits.kl_max", "logits.kl", layers, find_unusual(layers), measure, 4)
    assert len(tries) <= 1 + MAX_GROUPS + MAX_SINGLES + 3
    assert len(set(tries)) == len(tries)
    return found


def test_the_format_of_a_whole_graph_is_the_cause_where_no_single_layer_is():
    """A ViT layer is unusual at 33 dB among 40, and does next to nothing: it is not the cause."""
    layers = make_layers({VISION[0]: 33.0})
    assert [f.layer for f in find_unusual(layers)] == [VISION[0]]
    harm = {name: 0.1 for name in DECODER} | {VISION[0]: 0.02}
    found = blame(harm, layers)
    assert set(found.layers) == set(DECODER)
    assert found.cause == "8 int4 block 64 layers of the decoder together"
    assert found.before == pytest.approx(0.82)
    assert found.after == pytest.approx(0.02)
    assert found.alone == pytest.approx(0.8)
    assert "no single layer explains it, the most is " in describe_blame(found)


def test_one_layer_is_the_cause_if_most_of_the_damage_goes_with_it():
    harm = {name: 0.01 for name in DECODER} | {VISION[3]: 0.5}
    found = blame(harm, make_layers({VISION[3]: 9.0}))
    assert found.cause == VISION[3]
    assert found.layers == (VISION[3],)
    assert found.repaired == pytest.approx(0.5 / 0.58)
    assert found.alone == pytest.approx(0.5)
    assert describe_blame(found) == (
        f"{VISION[3]} (logits.kl 0.58 -> 0.08 when it alone is given back, 86% of the damage)"
    )


def test_two_layers_that_are_unusual_are_the_cause_together():
    harm = {VISION[3]: 0.3, VISION[5]: 0.3, VISION[1]: 0.2}
    found = blame(harm, make_layers({VISION[3]: 9.0, VISION[5]: 8.0}))
    assert set(found.layers) == {VISION[3], VISION[5]}


def test_several_formats_are_the_cause_together():
    harm = {name: 0.1 for name in (*DECODER[:4], *VISION[:4])} | {VISION[7]: 0.01, DECODER[7]: 0.01}
    harm["attention"] = 0.0
    found = blame(harm)
    assert found.repaired >= 0.49
    assert len(found.layers) >= 8


def test_damage_of_no_linear_layer_is_not_blamed_on_one():
    found = blame({"a cache": 1.0, DECODER[0]: 0.1})
    assert (found.cause, found.layers) == ("", ())
    assert math.isnan(found.after)
    assert describe_blame(found).startswith("no linear layers explain it: ")


def test_without_damage_nothing_is_tried():
    found = blame({})
    assert (found.cause, found.trials) == ("", ())
    assert describe_blame(found) == "no linear layers explain it"


# A ViT of INT8 and a decoder of INT4, with or without one bad layer more
RECIPE = parse_recipe(
    'name = "mixed"\n[vision]\nformat = "int8-weight"\nblock_size = 32\n'
    '[decoder]\nformat = "int4-weight"\nblock_size = 32\n'
    '[lm_head]\nformat = "int8-weight"\nblock_size = 32\n',
    "test",
)
BAD = "visual.blocks.1.mlp.fc1"
WITH_BAD = dataclasses.replace(RECIPE, layers=(LayerException(BAD, "int4-weight", block_size=32),))
PLAN = CheckPlan(("embeddings", "logits", "texts", "layers"), max_new_tokens=4, num_threads=1)


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def checked(source, questions, tmp_path_factory):
    """checked(recipe): a bundle of it and what a check found."""
    made = {}

    def make(recipe):
        key = repr(recipe)
        if key not in made:
            bundle = tmp_path_factory.mktemp("checked") / "bundle"
            quantize_bundle(source, bundle, recipe, num_threads=1)
            made[key] = bundle, run_check(bundle, source, questions, PLAN)
        return made[key]

    return make


def judge_and_blame(checked, source, questions, recipe, gate):
    bundle, result = checked(recipe)
    steps = []
    verdict = measure_blame(
        bundle,
        source,
        questions.examples,
        result,
        judge(result, parse_gate(gate)),
        max_new_tokens=4,
        num_threads=1,
        on_step=steps.append,
    )
    return verdict, steps


PICTURES = "[image_embeds]\nrel_l2_max = 0.0001\n"
ANSWERS = "[logits]\nkl_mean_max = 1e-9\n"


def test_pictures_and_answers_fail_for_reasons_of_their_own(checked, source, questions):
    verdict, steps = judge_and_blame(checked, source, questions, WITH_BAD, PICTURES + ANSWERS)
    pictures, answers = verdict.blames
    assert (pictures.limit, pictures.metric) == ("image_embeds.rel_l2_max", "image_embeds.rel_l2")
    assert pictures.layers == (BAD,)
    assert pictures.after < pictures.before / 1.4 < pictures.alone
    assert (answers.limit, answers.metric) == ("logits.kl_mean_max", "logits.kl_mean")
    assert {name.startswith("visual.") for name in answers.layers} == {False}
    assert len(answers.layers) > 4
    assert answers.after < answers.before / 2
    assert {finding.layer for finding in verdict.guilty} == {BAD, *answers.layers}
    assert any("blame for logits.kl_mean_max" in step for step in steps)
    lines = list(list_blame(verdict, 3))
    assert lines[0].startswith(f"cause of image_embeds.rel_l2_max: {BAD} (image_embeds.rel_l2 ")
    assert lines[1].startswith("cause of logits.kl_mean_max: ")


def test_a_text_that_fails_is_looked_into_by_its_logits(checked, source, questions):
    gate = "[text]\nexact_match_min = 1.0\n[image_embeds]\nrel_l2_max = 1\n"
    _, result = checked(RECIPE)
    texts = tuple(
        dataclasses.replace(text, got=f"{text.got}!", edit_distance=1) for text in result.texts
    )
    bundle, _ = checked(RECIPE)
    verdict = measure_blame(
        bundle,
        source,
        questions.examples,
        dataclasses.replace(result, texts=texts),
        judge(dataclasses.replace(result, texts=texts), parse_gate(gate)),
        max_new_tokens=4,
        num_threads=1,
    )
    (blame,) = verdict.blames
    assert (blame.limit, blame.metric) == ("text.exact_match_min", "logits.kl_mean")
    assert blame.cause


def test_the_bundle_as_it_is_has_the_damage_that_the_check_found(checked, source, questions):
    """The walk with nothing given back, against the runtime's own run of the same bundle."""
    verdict, _ = judge_and_blame(checked, source, questions, WITH_BAD, PICTURES + ANSWERS)
    rows = {row.key: row.got for row in verdict.rows}
    for blame in verdict.blames:
        assert blame.before == pytest.approx(rows[blame.limit], rel=0.02)


def test_what_holds_and_what_layers_cannot_do_is_not_looked_into(checked, source, questions):
    for gate in ("[image_embeds]\nrel_l2_max = 1", "[layers]\nsqnr_db_min = 190"):
        verdict, steps = judge_and_blame(checked, source, questions, RECIPE, gate)
        assert (verdict.blames, steps) == ((), [])


def test_layers_under_a_limit_of_their_own_are_guilty_without_trials(checked):
    _, result = checked(WITH_BAD)
    verdict = judge(result, parse_gate("[layers]\nown_sqnr_db_min = 30"))
    under = {f.layer for f in result.layers if f.own_sqnr_db < 30}
    assert {finding.layer for finding in verdict.guilty} == under
    assert BAD in under


def test_trials_run_on_the_worst_examples(checked, questions):
    _, result = checked(RECIPE)
    verdict = judge(result, parse_gate(PICTURES))
    worst = max((f for f in result.embeddings if f.level == "image_embeds"), key=lambda f: f.rel_l2)
    chosen = choose_worst(questions.examples, result, verdict.failed[0])
    assert chosen[0].id == worst.example


def judge_settings(checked, source, questions, tmp_path, edit_manifest, change, gate):
    """Of a bundle that is sound but for one setting."""
    bundle = tmp_path / "changed"
    shutil.copytree(checked(RECIPE)[0], bundle)
    edit_manifest(bundle, change)
    result = run_check(bundle, source, questions, PLAN)
    verdict = judge(result, parse_gate(gate))
    return measure_blame(
        bundle, source, questions.examples, result, verdict, max_new_tokens=4, num_threads=1
    )


def test_no_layer_is_blamed_for_answers_that_wrong_settings_spoil(
    checked, source, questions, tmp_path, edit_manifest
):
    def change(raw):
        raw["generation"]["repetition_penalty"] = 30.0

    gate = "[text]\nexact_match_min = 1.0\n"
    verdict = judge_settings(checked, source, questions, tmp_path, edit_manifest, change, gate)
    assert {row.level for row in verdict.failed} == {"settings", "text"}
    (blame,) = verdict.blames
    assert (blame.limit, blame.layers, blame.trials) == ("text.exact_match_min", (), ())
    assert verdict.guilty == ()
    assert list(list_blame(verdict, 3)) == [
        "cause of text.exact_match_min: not looked for in layers: settings differ "
        "(generation.repetition_penalty)"
    ]


@pytest.mark.parametrize(
    "allow", ["", '[settings]\nallow = ["pixels.min_pixels", "pixels.max_pixels"]\n']
)
def test_no_layer_is_blamed_for_pictures_of_another_size(
    checked, source, questions, tmp_path, edit_manifest, allow
):
    def change(raw):
        raw["pixels"] |= {"min_pixels": 28 * 28, "max_pixels": 28 * 28}

    still = tuple(example for example in questions.examples if example.id != "clip")
    questions = dataclasses.replace(questions, examples=still)  # every picture has another size
    gate = f"{allow}[image_embeds]\nrel_l2_max = 0.2\n[logits]\nkl_max = 1e-6\n"
    verdict = judge_settings(checked, source, questions, tmp_path, edit_manifest, change, gate)
    pictures, answers = verdict.blames
    assert pictures.reason.startswith("no fault of layers, on equal inputs it holds: settings diff")
    assert "pixels.max_pixels" in describe_blame(pictures)
    assert answers.cause  # this limit is broken by four bits on equal inputs as well
