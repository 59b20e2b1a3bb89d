"""The search for layers to give back: the planted ones and no other, and no success unproven."""

import dataclasses
import shutil

import pytest
from plant_outliers import plant_outliers

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.quant.auto import search_recipe as auto
from vlmedge.quant.auto.search_recipe import search_recipe
from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LayerException
from vlmedge.quant.recipe.toml import format_recipe, parse_recipe
from vlmedge.runtime.errors import BundleError

PLANTED = ("visual.blocks.1.attn.qkv", "visual.blocks.2.mlp.fc1", "model.layers.1.mlp.down_proj")
INT8 = parse_recipe(
    """name = "int8"
[vision]
format = "int8"
ranges = "minmax"
smooth = "off"
[decoder]
format = "int8"
ranges = "minmax"
smooth = "off"
""",
    "test",
)
GATE = parse_gate("[image_embeds]\nrel_l2_max = 0.03\n[logits]\nkl_mean_max = 0.005\n")
CHECK = CheckPlan(("embeddings", "logits"), num_threads=1)


@pytest.fixture(scope="module")
def checkpoints(checkpoint_script, tmp_path_factory):
    """A random model, and the same with outliers in the input of three of its layers."""
    folder = tmp_path_factory.mktemp("planted")
    size = dataclasses.replace(checkpoint_script.SIZES["tiny"], depth=4, num_layers=3)
    plain = checkpoint_script.make_checkpoint(folder / "plain", size)
    return plain, plant_outliers(plain, folder / "planted", list(PLANTED), num_channels=4)


@pytest.fixture(scope="module")
def bundles(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for checkpoint in checkpoints:
        export_checkpoint(checkpoint, folder / checkpoint.name, ExportOptions("fp32"))
    return folder / "plain", folder / "planted"


def search(source, data, tmp_path, recipe=INT8, gate=GATE, **options):
    return search_recipe(source, recipe, data, gate, num_threads=1, work=tmp_path / "w", **options)


def check(source, recipe, data, folder, gate=GATE):
    """What quantizing by a recipe and checking the bundle says, step by step."""
    quantize_bundle(source, folder, recipe, data, num_threads=1)
    return judge(run_check(folder, source, data, CHECK), gate)


def test_planting_leaves_the_float_model_as_it_is(bundles, questions):
    plain, planted = bundles
    result = run_check(planted, plain, questions, CHECK)
    assert max(finding.max_abs for finding in result.embeddings) == 0
    assert max(kl for finding in result.logits for kl in finding.kl) == 0


def test_exactly_the_planted_layers_are_given_back(bundles, questions, tmp_path):
    plain, planted = bundles
    assert check(plain, INT8, questions, tmp_path / "plain").passed
    assert not check(planted, INT8, questions, tmp_path / "planted").passed
    lines = []
    found = search(planted, questions, tmp_path, progress=lines.append)
    assert found.passed
    assert [layer for layer, *_ in found.returned] == list(PLANTED)
    assert {(before, after) for _, before, after, _ in found.returned} == {("int8", "float")}
    assert check(planted, found.recipe, questions, tmp_path / "found").passed
    assert found.bundles == 2  # the recipe as it was, and the one that came out
    assert found.checks == sum(": try " in line or ": check " in line for line in lines) <= 20
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("cost", ["bits", "ms"])
def test_other_planted_layers_are_found_by_either_cost(checkpoints, questions, tmp_path, cost):
    layers = {
        "bits": ["visual.blocks.3.attn.proj", "model.layers.2.self_attn.o_proj"],
        "ms": ["visual.merger.mlp.0", "model.layers.0.self_attn.q_proj+k_proj+v_proj"],
    }[cost]
    plant_outliers(checkpoints[0], tmp_path / "checkpoint", layers)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions("fp32"))
    found = search(tmp_path / "bundle", questions, tmp_path, cost=cost)
    assert found.passed
    assert [layer for layer, *_ in found.returned] == layers


def test_the_recipe_is_explicit_and_says_why(bundles, questions, tmp_path):
    found = search(bundles[1], questions, tmp_path)
    read = parse_recipe(format_recipe(found.recipe), "written")
    assert read.name == "int8-auto"
    assert dataclasses.replace(read, name="int8", layers=()) == INT8
    assert [exception.pattern for exception in read.layers] == list(PLANTED)
    for exception in read.layers:
        assert exception.format == "float"
        assert exception.reason.startswith("auto: own SQNR ")
        assert "gate image_embeds.rel_l2_max, logits.kl_mean_max" in exception.reason


def test_a_gate_that_holds_gives_nothing_back(bundles, questions, tmp_path):
    found = search(bundles[0], questions, tmp_path)
    assert (found.passed, found.returned, found.checks, found.bundles) == (True, (), 1, 1)
    assert found.recipe == INT8


def test_a_source_swapped_while_it_is_searched_gives_no_recipe(bundles, questions, tmp_path):
    source = shutil.copytree(bundles[0], tmp_path / "float")

    def swap(line):
        if "auto: quantizing" in line:
            source.rename(tmp_path / "old")
            shutil.copytree(bundles[0], source)

    with pytest.raises(BundleError, match="was replaced while it was read"):
        search(source, questions, tmp_path, progress=swap)


def test_a_gate_of_answers_is_searched_with_real_checks(bundles, questions, tmp_path):
    gate = parse_gate("[text]\nexact_match_min = 1.0\n")
    found = search(bundles[1], questions, tmp_path, gate=gate)
    assert found.passed
    assert len(found.returned) > 0
    assert found.bundles == found.checks <= auto.MAX_CHECKS


def test_what_only_walks_have_passed_is_no_success(bundles, questions, tmp_path, monkeypatch):
    """The real check refuses everything: every search ends, within its bounds, without success."""
    real = auto.check_bundle
    bad = parse_gate("[image_embeds]\nrel_l2_max = 0.0\n")
    monkeypatch.setattr(
        auto,
        "check_bundle",
        lambda bundle, source, data, gate, threads: dataclasses.replace(
            real(bundle, source, data, gate, threads),
            rows=tuple(
                dataclasses.replace(row, state="failed")
                for row in real(bundle, source, data, bad, threads).rows
            ),
        ),
    )
    monkeypatch.setattr(auto, "MAX_CHECKS", 4)
    found = search(bundles[1], questions, tmp_path)
    assert not found.passed
    assert found.bundles <= 4


def test_nothing_is_tried_where_only_speed_fails(bundles, questions, tmp_path):
    gate = parse_gate("[speed]\nvision_max = 1e-9\n")
    found = search(bundles[0], questions, tmp_path, gate=gate)
    assert (found.passed, found.returned, found.checks) == (False, (), 1)


def test_the_gate_can_have_data_of_its_own(bundles, questions, tmp_path, monkeypatch):
    held_out = dataclasses.replace(questions, name="held out", examples=questions.examples[1:])
    seen, real = [], auto.check_bundle

    def spy(bundle, source, data, *rest):
        seen.append(data.name)
        return real(bundle, source, data, *rest)

    monkeypatch.setattr(auto, "check_bundle", spy)
    found = search(bundles[1], questions, tmp_path, gate_data=held_out)
    assert found.passed
    assert set(seen) == {"held out"}


def test_a_gate_that_the_data_can_t_answer_is_told_before_the_work(bundles, questions, tmp_path):
    unlabelled = tuple(dataclasses.replace(e, answers=()) for e in questions.examples)
    data = dataclasses.replace(questions, examples=unlabelled)
    gate = parse_gate("[tasks]\nloss_max = 1\n")
    with pytest.raises(ValueError, match=r"no example of data\.jsonl has an answer"):
        search(bundles[0], data, tmp_path, gate=gate)
    assert not (tmp_path / "w").exists()


def test_exceptions_of_the_recipe_stay(bundles, questions, tmp_path):
    own = LayerException("visual.blocks.0.*", "float", "mine")
    recipe = dataclasses.replace(INT8, layers=(own,))
    found = search(bundles[1], questions, tmp_path, recipe=recipe)
    assert found.recipe.layers[0] == own
    assert [exception.pattern for exception in found.recipe.layers[1:]] == list(PLANTED)


def test_an_interrupted_search_goes_on_with_its_layers(bundles, questions, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(auto, "search_moves", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(bundles[1], questions, tmp_path)
    quantized = []
    for name in (
        "quantize.stage_quantizer.StageQuantizer.quantize",
        "sensitivity.rows.RowFolder.save",
    ):
        monkeypatch.setattr(f"vlmedge.quant.{name}", lambda *_, **__: quantized.append(1))
    found = search(bundles[1], questions, tmp_path)
    assert found.passed
    assert not quantized
    assert [layer for layer, *_ in found.returned] == list(PLANTED)
