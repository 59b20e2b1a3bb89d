"""`vlmedge check`: exit codes, one-line errors, the report, and the layer that is to blame."""

import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LayerException, LinearRecipe, Recipe
from vlmedge.runtime.cli import main as cli

WEAK = "visual.blocks.1.mlp.fc1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three pictures with questions, one of them labelled."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i, (width, height) in enumerate(((84, 56), (56, 112), (140, 84))):
        levels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{i}.png")
        line = {"id": f"p{i}", "image": f"{i}.png", "question": "What?"}
        lines.append(line | ({"answer": "nothing", "task": "t"} if i == 0 else {}))
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def weak_bundle(tiny_bundle, data, tmp_path_factory):
    """INT8 everywhere, but for one layer of INT4 in long blocks."""
    target = tmp_path_factory.mktemp("weak") / "weak"
    weak = LayerException(WEAK, "int4-weight", block_size=32)
    int8 = LinearRecipe("int8")
    recipe = Recipe("weak", vision=int8, decoder=int8, lm_head=int8, layers=(weak,))
    quantize_bundle(tiny_bundle, target, recipe, open_data(str(data)), num_threads=1)
    return target


@pytest.fixture
def run(tiny_bundle, data, capsys, monkeypatch):
    """run(bundle, *options) -> (code, out, err), against the float bundle on the data."""
    monkeypatch.delenv("VLMEDGE_DEBUG", raising=False)

    def run(bundle, *options, against=tiny_bundle, data=data):
        args = ["check", bundle, "--against", against, "--data", data, "--threads", "1"]
        args += ["--max-new-tokens", "4", "--speed-runs", "1", *options]
        code = cli.main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def write_gate(tmp_path, text):
    path = tmp_path / "gate.toml"
    path.write_text(text, encoding="utf-8")
    return path


SEEN = ("--levels", "embeddings,logits,texts,tasks,layers")


def test_a_bundle_that_holds_the_gate_passes(run, tiny_bundle, tmp_path):
    gate = write_gate(tmp_path, "image_embeds.cosine_min = 1\nlogits.never_part_min = 1")
    code, out, err = run(tiny_bundle, *SEEN, "--gate", gate)
    assert (code, err) == (0, "")
    assert out.rstrip().endswith("PASSED")


def test_a_broken_bundle_fails_and_the_guilty_layer_is_named(run, weak_bundle, tmp_path):
    gate = write_gate(tmp_path, "image_embeds.rel_l2_max = 0.005\nlogits.top1_min = 0")
    report = tmp_path / "deep" / "report"
    code, out, err = run(weak_bundle, *SEEN, "--gate", gate, "--report", report)
    assert (code, err) == (1, "")
    assert out.rstrip().endswith("FAILED: 1 of 3 limits fails")
    assert f"guilty: {WEAK} (int4 block 32, " in out
    content = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert content["passed"] is False
    assert [layer["layer"] for layer in content["guilty"]] == [WEAK]
    assert [layer["layer"] for layer in content["unusual"]] == [WEAK]
    (blame,) = content["blames"]
    assert (blame["limit"], blame["layers"]) == ("image_embeds.rel_l2_max", [WEAK])
    assert blame["after"] < blame["before"] < 2 * blame["alone"]
    assert f"cause of image_embeds.rel_l2_max: {WEAK} (image_embeds.rel_l2 " in out
    junit = ET.parse(report / "junit.xml").getroot()
    assert (junit.get("tests"), junit.get("failures")) == ("3", "1")
    assert WEAK in (report / "report.html").read_text(encoding="utf-8")


def test_against_a_checkpoint_there_are_suspects_and_no_guilty(
    run, weak_bundle, tiny_checkpoint, tmp_path
):
    gate = write_gate(tmp_path, "image_embeds.rel_l2_max = 0.005")
    code, out, _ = run(weak_bundle, *SEEN, "--gate", gate, against=tiny_checkpoint)
    assert code == 1
    assert f"suspect by its own error (not measured): {WEAK} (int4 block 32, " in out
    assert "guilty" not in out


def test_what_the_data_cannot_tell_is_undecided_and_1(run, tiny_bundle, tmp_path):
    gate = write_gate(tmp_path, "tasks.loss_max = 0.5\ntasks.non_inferior = true")
    report = tmp_path / "report"
    code, out, err = run(
        tiny_bundle, "--levels", "tasks", "--gate", gate, "--report", report, "--task", "t"
    )
    assert (code, err) == (1, "")
    assert out.rstrip().endswith("UNDECIDED: 1 of 2 limits needs more data")
    assert "it takes about 770 such examples to pass" in out
    content = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert (content["passed"], content["state"]) == (False, "undecided")
    (failure,) = ET.parse(report / "junit.xml").getroot().iter("failure")
    assert failure.get("type") == "undecided"
    assert "UNDECIDED" in (report / "report.html").read_text(encoding="utf-8")


def test_settings_that_differ_fail_a_gate_and_are_told_without_one(
    run, tiny_bundle, tmp_path, edit_manifest
):
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    edit_manifest(other, lambda raw: raw["generation"].update(repetition_penalty=3.0))
    code, out, err = run(other, "--levels", "settings")
    assert code == 0
    assert "generation.repetition_penalty" in out
    assert err == (
        "vlmedge check: settings that differ from the reference's, which any gate would fail: "
        "generation.repetition_penalty\n"
    )
    gate = write_gate(tmp_path, "text.unended_max = 1")
    code, out, err = run(other, "--levels", "texts", "--gate", gate)
    assert (code, err) == (1, "")
    assert out.rstrip().endswith("FAILED: 1 of 2 limits fails")
    allow = "text.unended_max = 1\nsettings.allow = ['generation.repetition_penalty']"
    assert run(other, "--levels", "texts", "--gate", write_gate(tmp_path, allow))[0] == 0


def test_without_a_gate_nothing_fails(run, weak_bundle):
    code, out, err = run(weak_bundle)
    assert (code, err) == (0, "")
    for word in ("image_embeds", "logits", "text", "layers", "vision", "peak_memory"):
        assert word in out
    assert "PASSED" not in out


def test_json_is_the_report_alone(run, weak_bundle, tmp_path):
    gate = write_gate(tmp_path, "image_embeds.rel_l2_max = 0.0001")
    code, out, _ = run(weak_bundle, "--levels", "embeddings", "--gate", gate, "--json")
    content = json.loads(out)
    assert code == 1
    assert content["passed"] is False
    assert content["result"]["num_examples"] == 3
    assert {f["bucket"] for f in content["result"]["embeddings"]} == {"84x56", "56x112", "140x84"}


def test_a_limit_and_a_task_choose_examples(run, tiny_bundle):
    _, out, _ = run(tiny_bundle, "--levels", "texts", "--limit", "2", "--json")
    assert json.loads(out)["result"]["num_examples"] == 2
    _, out, _ = run(tiny_bundle, "--levels", "tasks", "--task", "t", "--json")
    assert [task["task"] for task in json.loads(out)["result"]["tasks"]] == ["t"]


def test_bad_pictures_are_skipped_only_on_demand_and_counted(run, tiny_bundle, data, tmp_path):
    folder = shutil.copytree(data.parent, tmp_path / "data")
    (folder / "1.png").write_bytes(b"no picture")
    options = ("--levels", "texts", "--json")
    code, out, err = run(tiny_bundle, *options, data=folder / "data.jsonl")
    assert (code, out) == (2, "")
    assert "--skip-bad" in err
    code, out, err = run(tiny_bundle, *options, "--skip-bad", data=folder / "data.jsonl")
    assert code == 0
    assert list(json.loads(out)["result"]["skipped"]) == ["p1"]
    assert err.startswith("vlmedge check: skipped p1: ")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("misspelt gate", "did you mean"),
        ("missing gate", "cannot be read"),
        ("gate on what is not measured", "limits image_embeds, which is not measured"),
        ("missing data", "No such file"),
        ("missing bundle", "no such directory"),
        ("missing reference", "nowhere"),
        ("unknown level", "needed one of settings, embeddings"),
        ("speed of a checkpoint", "needs a float bundle"),
        ("report is a file", "gate.toml"),
    ],
)
def test_what_could_not_run_is_one_line_and_2(
    run, tiny_bundle, tiny_checkpoint, tmp_path, case, message
):
    gate = write_gate(tmp_path, "image_embeds.cosine_min = 0.9")
    texts = ("--levels", "texts")
    code, out, err = {
        "misspelt gate": lambda: run(
            tiny_bundle, "--gate", write_gate(tmp_path, "image_embeds.cosinus_min = 0.9")
        ),
        "missing gate": lambda: run(tiny_bundle, "--gate", tmp_path / "none.toml"),
        "gate on what is not measured": lambda: run(tiny_bundle, *texts, "--gate", gate),
        "missing data": lambda: run(tiny_bundle, data=tmp_path / "none.jsonl"),
        "missing bundle": lambda: run(tmp_path / "none", *texts),
        "missing reference": lambda: run(tiny_bundle, *texts, against=tmp_path / "nowhere"),
        "unknown level": lambda: run(tiny_bundle, "--levels", "texts,embedings"),
        "speed of a checkpoint": lambda: run(
            tiny_bundle, "--levels", "speed", against=tiny_checkpoint
        ),
        "report is a file": lambda: run(tiny_bundle, *texts, "--report", gate),
    }[case]()
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("vlmedge check: ")
    assert err.count("\n") == 1


def test_a_wrong_option_is_one_line_and_2(run, tiny_bundle):
    code, out, err = run(tiny_bundle, "--limit", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_an_interruption_is_130(run, tiny_bundle, monkeypatch):
    from vlmedge.quant.check import run as check

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run_check", interrupt)
    assert run(tiny_bundle)[0] == 130


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_a_missing_engine_is_2_and_says_what_to_install(run_cli, tiny_bundle, data, missing):
    args = ("check", tiny_bundle, "--against", tiny_bundle, "--data", data)
    done = run_cli(*args, blocked=(missing,))
    assert done.returncode == 2
    assert "pip install 'vlmedge[" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_help_teaches_the_exit_codes_and_a_gate(run_cli):
    done = run_cli("check", "--help", blocked=("onnxruntime", "onnx", "numpy"))
    assert done.returncode == 0, done.stderr
    for words in ("image_embeds.cosine_min = 0.999", "2 could", "a limit fails", "--skip-bad"):
        assert words in done.stdout
