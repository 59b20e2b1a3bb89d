"""`vlmedge export --target` as a user calls it."""

import json
import os

import pytest

from vlmedge.runtime.bundle.manifest import TargetRecord
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli.main import main


@pytest.fixture
def export(get_source, tmp_path, capsys):
    """export(source, *arguments) -> (exit code, stdout, stderr); the bundle is tmp_path / "out"."""

    def run(source, *arguments):
        command = ["export", str(get_source(source)), str(tmp_path / "out"), *arguments]
        code = main(command)
        return code, *capsys.readouterr()

    return run


def test_files_and_target_are_printed(export, tmp_path):
    code, out, err = export("checkpoint", "--target", "jetpack-7.2", "--context", "64")
    assert (code, err) == (0, "")
    assert "target jetpack-7.2, dtype bfloat16" in " ".join(out.split())
    for name in ("vision.onnx.data", "decoder.onnx", "embedding.bin", "tokenizer.json"):
        assert name in out
    target = read_manifest(tmp_path / "out").target
    assert target == TargetRecord("jetpack-7.2", "10.16", "bfloat16", "in_place", 64)


def test_json_holds_the_target_and_the_files(export, tmp_path):
    code, out, _ = export("orin", "--target", "jetpack-6.2", "--dtype", "fp16", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["target"] == {
        "name": "jetpack-6.2",
        "tensorrt": "10.3",
        "dtype": "float16",
        "cache": "append",
        "capacity": None,
    }
    files = read_manifest(tmp_path / "out").files
    assert result["bytes"] == {name: record.bytes for name, record in files.items()}


def test_a_quantized_bundle_may_be_given(export, tmp_path):
    code, _, err = export("thor", "--target", "jetpack-7.0", "--device", "thor")
    assert (code, err) == (0, "")
    assert read_manifest(tmp_path / "out").quantization.recipe == "thor"


@pytest.mark.parametrize("link", [True, False])
def test_linked_weights_are_no_copy(export, get_source, tmp_path, link):
    # The same file system here: the temporary folder's.
    arguments = ["--link-weights"] if link else []
    code, _, err = export("checkpoint", "--target", "jetpack-6.2", *arguments)
    assert (code, err) == (0, "")
    inodes = {path.stat().st_ino for path in get_source("checkpoint").glob("*.safetensors")}
    assert bool(inodes & {path.stat().st_ino for path in (tmp_path / "out").iterdir()}) == link


@pytest.mark.parametrize(
    ("source", "arguments", "code", "message"),
    [
        ("fp32", ["--target", "jetpack-5"], 2, "target is 'jetpack-5', needed one of jetpack-6.2"),
        ("fp32", ["--target", "jetpack-6.2", "--dtype", "int8"], 2, "--dtype"),
        ("fp32", ["--target", "jetpack-6.2", "--context", "64"], 2, "give --context to vlmedge bu"),
        ("fp32", ["--target", "jetpack-7.2", "--context", "0"], 2, "context is 0"),
        ("fp32", ["--target", "jetpack-7.2", "--context", "9999999"], 1, "model has positions for"),
        ("fp32", ["--target", "jetpack-7.2", "--device", "nano"], 2, "--device"),
        (
            "fp32",
            ["--target", "jetpack-6.2", "--device", "thor"],
            2,
            "comes with orin, not with th",
        ),
        ("thor", ["--target", "jetpack-6.2"], 1, "quantize with --recipe orin"),
        ("thor", ["--target", "jetpack-7.2", "--device", "orin"], 1, "quantize with --recipe orin"),
        ("fp32", ["--target", "jetpack-6.2", "--link-weights"], 1, "give the checkpoint"),
        (
            "checkpoint",
            ["--target", "jetpack-6.2", "--link-weights", "--dtype", "fp16"],
            1,
            "this one has BF16",
        ),
        ("checkpoint", ["--target", "jetpack-6.2", "--weights", "int4"], 2, "quantize first"),
        ("checkpoint", ["--target", "jetpack-6.2", "--block-size", "64"], 2, "quantize first"),
        ("checkpoint", ["--target", "jetpack-6.2", "--verify"], 2, "leave out --target"),
        ("checkpoint", ["--dtype", "fp16"], 2, "--dtype goes with --target"),
        ("checkpoint", ["--context", "64"], 2, "--context goes with --target"),
        ("checkpoint", ["--device", "orin"], 2, "--device goes with --target"),
        ("checkpoint", ["--link-weights"], 2, "--link-weights goes with --target"),
        # Without a target a bundle is no checkpoint
        ("fp32", [], 1, "is a bundle already, not a checkpoint"),
    ],
    ids=lambda value: "-".join(value).replace("-", "") if isinstance(value, list) else None,
)
def test_what_cannot_be_is_one_line(export, tmp_path, source, arguments, code, message):
    got, out, err = export(source, *arguments)
    assert got == code
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_target_bundle_as_source_is_one_line(export, get_source, tmp_path, capsys):
    assert export("fp32", "--target", "jetpack-6.2")[0] == 0
    command = ["export", str(tmp_path / "out"), str(tmp_path / "again"), "--target", "jetpack-7.2"]
    assert main(command) == 1
    assert "is for jetpack-6.2 already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
