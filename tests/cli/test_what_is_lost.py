"""Commands that write where somebody's files are: refused in one line, before the work."""

import json
import os
import shutil

import pytest

from vlmedge.quant.check import run as check
from vlmedge.quant.compare import diff
from vlmedge.quant.quantize import quantize as quantizer
from vlmedge.quant.sensitivity import measure as sensitivity
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli import main as cli

THESIS = "years of work"


@pytest.fixture(scope="module")
def data(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(picture, folder / "a.png")
    line = {"id": "a", "image": "a.png", "question": "What?", "answer": "x"}
    (folder / "data.jsonl").write_text(json.dumps(line) + "\n")
    return folder / "data.jsonl"


@pytest.fixture
def call(capsys, monkeypatch):
    """call(*args) -> (code, out, err)."""
    monkeypatch.delenv("VLMEDGE_DEBUG", raising=False)

    def call(*args):
        code = cli.main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def idle(monkeypatch):
    """Nothing long may begin."""

    def fail(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(check, "run_check", fail)
    monkeypatch.setattr(diff, "trace_reference", fail)
    monkeypatch.setattr(sensitivity, "measure_sensitivity", fail)
    monkeypatch.setattr(quantizer, "quantize_bundle", fail)


def list_commands(bundle, data, out):
    """Name of a file -> the command that writes it, and the code of its errors."""
    one = ("check", bundle, "--against", bundle, "--data", data, "--levels", "texts")
    one = (*one, "--max-new-tokens", "1", "--threads", "1", "--report", out)
    two = ("diff", bundle, bundle, "--data", data, "--threads", "1", "--plot", out / "plot.html")
    three = ("sensitivity", bundle, "--recipe", "cpu", "--data", data, "--threads", "1")
    three = (*three, "--out", out)
    four = ("quantize", bundle, out.parent / "q", "--recipe", "cpu", "--data", data)
    return {
        "report.html": (one, 2),
        "report.json": (one, 2),
        "junit.xml": (one, 2),
        "plot.html": (two, 2),
        "sensitivity.json": (three, 1),
        "sensitivity.html": (three, 1),
        "recipe.toml": ((*four, "--write-recipe", out / "recipe.toml"), 1),
        "found.json": ((*four, "--calibration", out / "found.json"), 1),
    }


NAMES = list(list_commands("", "", cli.Path()))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_ours_stops_the_command_before_the_work(
    call, idle, tiny_bundle, data, tmp_path, name
):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(THESIS)
    args, expected = list_commands(tiny_bundle, data, out)[name]
    code, printed, err = call(*args)
    assert (code, printed) == (expected, "")
    assert f"{out / name} is there and is no " in err
    assert err.rstrip().endswith("--force overwrites it, or name another one")
    assert err.count("\n") == 1
    assert (out / name).read_text() == THESIS
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("name", "module", "work"),
    [
        ("junit.xml", check, "run_check"),
        ("plot.html", diff, "compare_layers"),
        ("sensitivity.json", sensitivity, "measure_sensitivity"),
        ("recipe.toml", quantizer, "quantize_bundle"),
    ],
)
def test_a_file_that_appears_during_the_work_stays(
    call, monkeypatch, tiny_bundle, data, tmp_path, name, module, work
):
    out = tmp_path / "out"
    out.mkdir()
    real = getattr(module, work)

    def work_and_write(*arguments, **options):
        made = real(*arguments, **options)
        (out / name).write_text(THESIS)
        return made

    monkeypatch.setattr(module, work, work_and_write)
    args, expected = list_commands(tiny_bundle, data, out)[name]
    code, printed, err = call(*args)
    assert code == expected
    assert f"{out / name} is there and is no " in err
    assert printed or name == "recipe.toml"  # what was measured is told all the same
    assert [path.name for path in out.iterdir() if path.is_file()] == [name]
    assert (out / name).read_text() == THESIS


@pytest.mark.parametrize("name", ["report.json", "plot.html", "sensitivity.html", "recipe.toml"])
def test_force_overwrites_it_and_what_is_ours_needs_none(call, tiny_bundle, data, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(THESIS)
    args, _ = list_commands(tiny_bundle, data, out)[name]
    assert call(*args, "--force")[0] == 0
    assert THESIS not in (out / name).read_text()
    written = sorted(os.listdir(out))
    assert call(*args)[0] == 0
    assert sorted(os.listdir(out)) == written


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_nothing_is_written_into_the_bundle(call, idle, tiny_bundle, data, tmp_path, name, force):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = sorted(os.listdir(bundle))
    args, expected = list_commands(bundle, data, bundle)[name]
    code, _, err = call(*args, *force)
    assert code == expected
    assert "lies in" in err
    assert sorted(os.listdir(bundle)) == before


def test_a_recipe_is_not_written_into_the_bundle_that_is_made(call, idle, tiny_bundle, tmp_path):
    (tmp_path / "q").mkdir()
    args = ("quantize", tiny_bundle, tmp_path / "q", "--recipe", "cpu")
    code, _, err = call(*args, "--write-recipe", tmp_path / "q" / "recipe.toml")
    assert code == 1
    assert "lies in" in err


def test_two_outputs_are_two_files(call, idle, tiny_bundle, data, tmp_path):
    args = ("quantize", tiny_bundle, tmp_path / "q", "--recipe", "cpu", "--data", data)
    names = (tmp_path / "x", "--write-recipe", tmp_path / "." / "x")
    code, _, err = call(*args, "--calibration", *names)
    assert code == 2
    assert "are the same file" in err


def test_work_of_somebody_else_in_an_output_folder_stays(call, idle, tiny_bundle, data, tmp_path):
    work = tmp_path / "out" / ".unfinished"
    work.mkdir(parents=True)
    (work / "novel.txt").write_text(THESIS)
    args, _ = list_commands(tiny_bundle, data, tmp_path / "out")["sensitivity.json"]
    code, _, err = call(*args)
    assert code == 1
    assert "holds what is not vlmedge's (novel.txt)" in err
    assert (work / "novel.txt").read_text() == THESIS


@pytest.fixture
def make_commands(tiny_bundle, tiny_checkpoint):
    """The three commands that write a bundle, but for its name."""
    return {
        "export": (lambda target: ("export", tiny_checkpoint, target)),
        "export --target": (
            lambda target: ("export", tiny_bundle, target, "--target", "jetpack-6.2")
        ),
        "quantize": (lambda target: ("quantize", tiny_bundle, target, "--recipe", "cpu")),
        "quantize a checkpoint": (
            lambda target: ("quantize", tiny_checkpoint, target, "--recipe", "cpu")
        ),
    }


COMMANDS = ("export", "export --target", "quantize", "quantize a checkpoint")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_thesis_beside_any_manifest_is_left_alone(call, make_commands, tmp_path, name):
    target = tmp_path / "extension"
    target.mkdir()
    (target / "manifest.json").write_text('{"manifest_version": 3}')
    (target / "thesis.tex").write_text(THESIS)
    code, out, err = call(*make_commands[name](target))
    assert (code, out) == (1, "")
    assert "not vlmedge's: it is left alone; name another target" in err
    assert (target / "thesis.tex").read_text() == THESIS
    assert os.listdir(tmp_path) == ["extension"]


@pytest.mark.parametrize("name", COMMANDS)
def test_notes_in_a_bundle_are_named_and_stay(call, make_commands, tiny_bundle, tmp_path, name):
    target = shutil.copytree(tiny_bundle, tmp_path / "old")
    (target / "notes.txt").write_text(THESIS)
    code, out, err = call(*make_commands[name](target))
    assert (code, out) == (1, "")
    assert "would be lost: notes.txt; move it away, or name another target" in err
    assert (target / "notes.txt").read_text() == THESIS
    assert read_manifest(target) == read_manifest(tiny_bundle)


@pytest.mark.parametrize("name", COMMANDS[:3])
def test_engines_go_with_the_old_bundle_and_that_is_told(
    call, make_commands, tiny_bundle, tmp_path, name
):
    target = shutil.copytree(tiny_bundle, tmp_path / "old")
    (target / "engines" / "sm87-tensorrt10.3.0-bfloat16").mkdir(parents=True)
    code, _, err = call(*make_commands[name](target))
    assert code == 0
    assert "had engines (sm87-tensorrt10.3.0-bfloat16), which are gone with it" in err
    assert not (target / "engines").exists()


def test_a_folder_of_pictures_may_hold_the_target(call, tiny_bundle, data, tmp_path, monkeypatch):
    shutil.copy(data.parent / "a.png", tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    code, _, err = call("quantize", tiny_bundle, "q", "--recipe", "cpu", "--data", ".")
    assert code == 0, err
    assert sorted(os.listdir()) == ["a.png", "q"]
