"""`vlmedge inspect CHECKPOINT`: settings and their places, remarks, and every reason against it."""

import json
import shutil
from pathlib import Path

import pytest

from vlmedge.runtime.cli import main as cli

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture
def reader(tmp_path):
    return shutil.copytree(SAMPLES / "reader", tmp_path / "reader")


def edit(path, *, without=(), **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {key: value for key, value in (content | changes).items() if key not in without}
    path.write_text(json.dumps(content))


def inspect(checkpoint, capsys):
    code = cli.main(["inspect", str(checkpoint), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_a_plain_checkpoint_is_told_of_with_where_each_setting_is_from(reader, capsys):
    code, report, err = inspect(reader, capsys)
    assert (code, err) == (0, "")
    assert report["ok"] is True
    assert report["unusual"] == report["refused"] == []
    assert report["model"]["parameters"] == "4,856,768"
    assert report["model"]["lm_head"] == "the embedding table"
    settings = {one["setting"]: one for one in report["settings"]}
    assert settings["tokens.eos"]["value"] == [464, 462]
    assert settings["tokens.eos"]["file"] == "generation_config.json"
    assert settings["pixels.max_pixels"]["file"] == "preprocessor_config.json"
    assert settings["pixels.resample"]["file"] is None
    assert settings["chat_template"]["file"] == "chat_template.json"
    assert settings["generation.max_new_tokens"]["value"] == 16


def test_a_person_sees_settings_and_remarks(reader, capsys):
    edit(reader / "config.json", my_own_key=3)
    edit(reader / "processor_config.json", image_processor={"max_pixels": 50176})
    assert cli.main(["inspect", str(reader)]) == 0
    out, err = capsys.readouterr()
    assert "processor_config.json: image_processor.max_pixels" in out
    assert "default of transformers" in out
    assert "unusual: config.json: unknown to transformers: my_own_key" in err
    assert "unusual: preprocessor_config.json is not read" in err


def test_all_reasons_against_an_export_are_told_at_once(reader, capsys):
    edit(reader / "preprocessor_config.json", do_resize=False)
    edit(reader / "generation_config.json", num_beams=4)
    edit(reader / "tokenizer_config.json", add_bos_token=True)
    code, report, err = inspect(reader, capsys)
    assert code == 1
    assert report["ok"] is False
    told = "\n".join(report["refused"])
    assert len(report["refused"]) == 3
    for key in ("do_resize", "num_beams", "add_bos_token"):
        assert key in told
    assert err.count("\n") == 1
    assert "reader can't be exported" in err
    assert "2 reasons more" in err


def test_what_only_a_question_shows_is_found(reader, capsys):
    (reader / "chat_template.json").unlink()
    (reader / "chat_template.jinja").write_text("{{ messages[0]['role'] }}")
    code, report, _ = inspect(reader, capsys)
    assert code == 1
    assert "could not answer a question about a picture" in report["refused"][0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "llava"}'),
        ("generation_config.json", "not JSON"),
        ("model.safetensors", "short"),
        ("tokenizer.json", "{}"),
    ],
)
def test_a_damaged_file_is_one_line_and_no_traceback(reader, capsys, name, content):
    (reader / name).write_text(content)
    code, report, err = inspect(reader, capsys)
    assert code == 1
    assert name in report["refused"][0] or "llava" in report["refused"][0]
    assert "unexpected" not in err
    assert err.count("\n") == 1


def test_a_packed_checkpoint_says_by_whom(packers, tmp_path, capsys):
    packers.pack_checkpoint(SAMPLES / "reader", tmp_path / "packed", "awq")
    _, report, _ = inspect(tmp_path / "packed", capsys)
    assert "28 layers by awq 4 bits" in report["model"]["packed"]


@pytest.mark.parametrize("option", ["--no-hash", "--coverage", "--seal"])
def test_options_of_bundles_are_refused(reader, capsys, option):
    assert cli.main(["inspect", str(reader), option]) == 1
    assert f"{option} is for bundles" in capsys.readouterr().err


def test_an_empty_folder_is_neither(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert "is not a bundle" in capsys.readouterr().err
