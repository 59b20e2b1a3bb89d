"""`vlmedge diff`: the first layer that departs, by name, and exit codes."""

import json
import math
import shutil
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.cli.diff import to_relative
from vlmedge.quant.graph.files import locate, read_graph
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli import main as cli

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of two pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate(((56, 84), (112, 56))):
        levels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def changed_bundle(tiny_bundle, tmp_path_factory, renew_records):
    """The float bundle with a tenth of one layer's matrix missing."""
    bundle = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("changed") / "changed")
    model = read_graph(bundle, read_manifest(bundle), "decoder")
    tensor = next(t for t in model.graph.initializer if t.name == f"{LAYER}.weight")
    file, offset, length = locate(tensor)
    with (bundle / file).open("r+b") as stream:
        stream.seek(offset)
        weight = np.frombuffer(stream.read(length), np.float32)
        stream.seek(offset)
        stream.write((weight * np.float32(0.9)).tobytes())
    renew_records(bundle)
    return bundle


@pytest.fixture
def run(tiny_bundle, data, capsys, monkeypatch):
    """run(bundle, *options) -> (code, out, err), against the float bundle on the pictures."""
    monkeypatch.delenv("VLMEDGE_DEBUG", raising=False)
    found = cli.find_commands()
    found["diff"] = EntryPoint("diff", "vlmedge.quant.cli.diff:diff", cli.GROUP)
    monkeypatch.setattr(cli, "find_commands", lambda: found)

    def run(bundle, *options, against=tiny_bundle, data=data):
        args = ["diff", against, bundle, "--data", data, "--threads", "1", *options]
        code = cli.main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def test_a_bundle_does_not_depart_from_itself(run, tiny_bundle):
    code, out, err = run(tiny_bundle)
    assert (code, err) == (0, "")
    assert out.rstrip().endswith("no layer departs by more than 0.001")
    assert "unusual" not in out


def test_the_changed_layer_is_the_first_to_depart(run, changed_bundle, tmp_path):
    page = tmp_path / "growth.html"
    code, out, err = run(changed_bundle, "--plot", page)
    assert (code, err) == (1, "")
    assert f"first to depart by more than 0.001: {LAYER} (float32), relative error 0.1 " in out
    assert f"unusual for its precision: {LAYER} (float32, 20.0 dB" in out
    assert out.count("unusual") == 1
    assert out.count("departs") == 1
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert LAYER in text


def test_a_tolerance_decides_what_departs(run, changed_bundle):
    assert run(changed_bundle, "--tolerance", "0.5")[0] == 0
    code, out, _ = run(changed_bundle, "--tolerance", "0.05", "--json")
    content = json.loads(out)
    assert code == 1
    assert content["first"]["layer"] == LAYER
    assert content["tolerance"] == 0.05
    assert content["unusual"] == [LAYER]
    assert to_relative(content["first"]["own_sqnr_db"]) == pytest.approx(0.1, rel=1e-3)
    assert len({layer["layer"] for layer in content["layers"]}) == 19


def test_settings_that_differ_are_told_beside_the_layers(run, tiny_bundle, edit_manifest, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy")
    edit_manifest(bundle, lambda raw: raw["generation"].update(suppress_tokens=[17]))
    code, out, err = run(bundle)
    assert (code, "no layer departs" in out) == (0, True)
    assert "settings differ" in err
    assert "generation.suppress_tokens ([] against [17])" in err
    found = json.loads(run(bundle, "--json")[1])["settings"]
    assert found == [{"name": "generation.suppress_tokens", "reference": "[]", "got": "[17]"}]
    assert "settings differ" not in run(tiny_bundle)[2]


def test_a_quantized_bundle_is_given_more_room(run, make_bundle):
    code, out, _ = run(make_bundle("tiny", "int8").bundle)
    assert code == 0
    assert "no layer departs by more than 0.1" in out
    assert "int8 block 128" in out


def test_a_bundle_is_compared_with_transformers(run, tiny_bundle, tiny_checkpoint):
    code, out, _ = run(tiny_bundle, against=tiny_checkpoint)
    assert code == 0
    assert "against transformers, checkpoint" in out


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing bundle", "no such directory"),
        ("missing data", "No such file"),
        ("another model", "two different models"),
        ("no page", "needed the name of an .html file"),
    ],
)
def test_what_could_not_run_is_one_line_and_2(
    run, tiny_bundle, make_bundle, tmp_path, case, message
):
    code, out, err = {
        "missing bundle": lambda: run(tmp_path / "none"),
        "missing data": lambda: run(tiny_bundle, data=tmp_path / "none.jsonl"),
        "another model": lambda: run(tiny_bundle, against=make_bundle("tiny-7b").bundle),
        "no page": lambda: run(tiny_bundle, "--plot", tmp_path / "growth.png"),
    }[case]()
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("vlmedge diff: ")
    assert err.count("\n") == 1


def test_decibels_and_relative_errors():
    assert to_relative(20) == pytest.approx(0.1)
    assert to_relative(-20 * math.log10(0.37)) == pytest.approx(0.37)
