"""`vlmedge export` as a user calls it: results on stdout, one line on stderr when it can't."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli.main import main


def test_a_table_of_the_files_is_printed(read_only_checkpoint, tmp_path, capsys):
    target = tmp_path / "bundle"
    assert main(["export", str(read_only_checkpoint()), str(target), "--selfcheck"]) == 0
    out, err = capsys.readouterr()
    assert "decoder.onnx.data" in out
    assert "selfcheck passed" in out
    assert err == ""
    read_manifest(target)


def test_json_holds_files_formats_and_the_selfcheck(read_only_checkpoint, tmp_path, capsys):
    target = tmp_path / "bundle"
    arguments = ["--weights", "int4", "--lm-head-weights", "fp16", "--block-size", "32"]
    checkpoint = str(read_only_checkpoint())
    command = ["export", checkpoint, str(target), *arguments, "--selfcheck", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["weights"] == {"vision": "int8", "decoder": "int4", "lm_head": "fp16"}
    assert [check["name"] for check in result["selfcheck"]] == ["vision", "vision_video", "decoder"]
    manifest = read_manifest(target)
    assert result["bytes"] == {name: record.bytes for name, record in manifest.files.items()}
    assert manifest.precision["model.layers.0.mlp.up_proj.weight"] == "int4 block 32"


@pytest.mark.parametrize("passed", [True, False])
def test_verify_decides_the_exit_code(read_only_checkpoint, tmp_path, capsys, monkeypatch, passed):
    """The comparison itself is tested beside the parity matrix; here only what becomes of it."""

    verify = ModuleType("verify")
    verify.verify_bundle = lambda checkpoint, bundle, adapters: SimpleNamespace(passed=passed)
    verify.report_to_dict = vars
    verify.print_report = lambda report: print("compared")
    monkeypatch.setitem(sys.modules, "vlmedge.export.verify.verify", verify)
    command = ["export", str(read_only_checkpoint()), str(tmp_path / "bundle"), "--verify"]
    assert main(command) == (0 if passed else 1)
    assert capsys.readouterr().out.endswith("compared\n")
    assert main([*command, "--json"]) == (0 if passed else 1)
    assert json.loads(capsys.readouterr().out)["verify"] == {"passed": passed}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--weights", "int3"], 2, "--weights"),
        (["--bits", "4"], 2, "--bits"),
        (["--block-size", "48"], 2, "--block-size is 48, needed one of"),
    ],
)
def test_a_wrong_option_is_one_line(
    read_only_checkpoint, tmp_path, capsys, arguments, code, message
):
    command = ["export", str(read_only_checkpoint()), str(tmp_path / "bundle"), *arguments]
    assert main(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "bundle")]) == 1
    err = capsys.readouterr().err
    assert "neither a directory nor a hub id" in err
    assert err.count("\n") == 1
