"""The command line of `vlmedge sensitivity`."""

import json
import threading

import pytest
import typer
from typer.testing import CliRunner

from vlmedge.quant.cli.sensitivity import sensitivity
from vlmedge.quant.files.target_lock import locked_target

RECIPE = """name = "small"
[vision]
format = "int8-dynamic"
"""


@pytest.fixture(scope="module")
def invoke(make_bundle, question_folder, tmp_path_factory):
    app = typer.Typer()
    app.command()(sensitivity)
    recipe = tmp_path_factory.mktemp("recipe") / "small.toml"
    recipe.write_text(RECIPE)
    bundle = make_bundle("tiny").bundle

    def run(*args, recipe=recipe, data=question_folder):
        words = [bundle, "--recipe", recipe, "--data", data, "--threads", "1", *args]
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def test_the_table_goes_to_stdout(invoke):
    done = invoke("--limit", "2")
    assert done.exit_code == 0, done.output
    assert "visual.blocks.1.mlp.fc2" in done.stdout
    assert "2 of 2 examples of data.jsonl" in done.stdout


def test_out_gets_both_files_and_nothing_else(invoke, tmp_path):
    left = tmp_path / "out" / ".unfinished" / "rows-of-another-recipe"
    left.mkdir(parents=True)
    done = invoke("--exact", "--json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["sensitivity.html", "sensitivity.json"]
    printed = json.loads(done.stdout)
    assert json.loads((tmp_path / "out/sensitivity.json").read_text()) == printed
    assert printed["mode"] == "exact"
    assert {layer["format"] for layer in printed["layers"]} == {"int8-dynamic"}


def test_two_at_once_never_share_a_folder(invoke, tmp_path):
    with locked_target(tmp_path / "out"):
        done = []
        thread = threading.Thread(target=lambda: done.append(invoke("--out", tmp_path / "out")))
        thread.start()
        thread.join()
    assert isinstance(done[0].exception, ValueError)
    assert "wait for it, or name another target" in str(done[0].exception)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_recipe_is_told(invoke):
    done = invoke(recipe="orinn")
    assert done.exit_code == 2
    assert "did you mean orin" in done.output
