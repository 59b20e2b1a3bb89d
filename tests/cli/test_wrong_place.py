"""A checkpoint where a bundle is wanted, and the other way round: each command says what to run."""

import pytest

from vlmedge.runtime.cli import main as cli


@pytest.mark.parametrize(
    "args",
    [
        ["run", "{}", "What?"],
        ["bench", "{}"],
        ["check", "{}", "--against", "{bundle}", "--data", "{data}"],
        ["diff", "{bundle}", "{}", "--data", "{data}"],
        ["sensitivity", "{}", "--recipe", "orin", "--data", "{data}"],
        ["build", "{}"],
        ["build", "{}", "--emit-script", "out.sh"],
    ],
    ids=lambda args: args[0],
)
def test_a_checkpoint_where_a_bundle_is_wanted_says_how_to_export_it(
    args, tiny_checkpoint, tiny_bundle, picture, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLMEDGE_DEBUG", raising=False)
    places = {"bundle": tiny_bundle, "data": picture.parent}
    code = cli.main([arg.format(tiny_checkpoint, **places) for arg in args])
    out, err = capsys.readouterr()
    assert code in (1, 2)
    assert out == ""
    assert "is a checkpoint, not a bundle" in err
    assert f"vlmedge export {tiny_checkpoint} {tiny_checkpoint.name}.bundle" in err


def test_exporting_a_bundle_says_what_can_be_made_of_it(tiny_bundle, capsys, tmp_path):
    assert cli.main(["export", str(tiny_bundle), str(tmp_path / "again")]) == 1
    err = capsys.readouterr().err
    assert "is a bundle already" in err
    assert "--target" in err


@pytest.mark.parametrize("command", ["plan", "export", "quantize"])
def test_a_gguf_file_is_told_apart_from_a_checkpoint(command, capsys, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\3\0\0\0")
    more = {"plan": [], "export": [tmp_path / "out"]}
    more["quantize"] = [tmp_path / "out", "--recipe", "cpu"]
    assert cli.main([command, str(path), *map(str, more[command])]) in (1, 2)
    assert "GGUF file of llama.cpp" in capsys.readouterr().err
