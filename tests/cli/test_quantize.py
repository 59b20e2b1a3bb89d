"""`vlmedge quantize`: bundles and checkpoints by presets and recipes, and what it refuses."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from vlmedge.quant.recipe.toml import open_recipe, parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli import main as cli

INT8 = """name = "int8"
[vision]
format = "int8"
[decoder]
format = "int8"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, picture):
    """Two questions about one picture, and one about a picture that is not there."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(picture, folder / "noise.png")
    lines = [
        {"id": f"q{i}", "image": "noise.png", "question": f"What is number {i}?", "answer": "noise"}
        for i in range(2)
    ]
    missing = {"id": "gone", "image": "gone.png", "question": "What is it?"}
    for name, content in (("good", lines), ("bad", [*lines, missing])):
        text = "".join(json.dumps(line) + "\n" for line in content)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def call(capsys):
    """call(*args): `vlmedge *args` in this process -> its end."""

    def run(*args):
        code = cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "int8.toml"
    path.write_text(INT8)
    return path


def check_error(run, code, *words):
    """It ends with this code and one line on stderr that has these words."""
    assert run.returncode == code, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("vlmedge quantize: "), run.stderr
    assert "Traceback" not in run.stderr
    for word in words:
        assert word in last, last


def test_a_preset_without_data_makes_a_bundle_that_answers(call, tiny_bundle, tmp_path, picture):
    run = call("quantize", tiny_bundle, tmp_path / "q", "--recipe", "cpu", "--threads", 1)
    assert run.returncode == 0, run.stderr
    for words in ("recipe cpu", "vision", "int8 dynamic", "lm_head", "int8 block 128", "decoder"):
        assert words in run.stdout
    assert os.listdir(tmp_path) == ["q"]
    answer = call("run", tmp_path / "q", "What?", "--image", picture, "--max-new-tokens", 3)
    assert answer.returncode == 0, answer.stderr


def test_json_is_one_object_on_stdout_and_progress_is_not_in_it(
    call, tiny_bundle, tmp_path, data, recipe
):
    args = ("--recipe", recipe, "--data", data / "good.jsonl", "--json", "--threads", 1)
    run = call("quantize", tiny_bundle, tmp_path / "q", *args)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    manifest = read_manifest(tmp_path / "q")
    assert result["bundle"] == str(tmp_path / "q")
    assert result["recipe"] == "int8"
    assert result["resumed_stages"] == 0
    assert result["seconds"] > 0
    assert result["peak_bytes"] > 1 << 20
    assert result["bytes"] == {name: r.bytes for name, r in manifest.files.items()}
    listed = {(e["graph"], e["name"]): e["precision"] for e in result["coverage"]}
    assert listed == {(e.graph, e.name): e.precision for e in manifest.coverage}
    error = result["errors"]["visual.blocks.0.attn.qkv"]
    assert 0 < error["chosen"] < 0.1
    assert set(error) == {"chosen", "nearest", "strength"}


def test_what_the_data_covers_of_the_picture_sizes_is_told(
    call, tiny_bundle, tmp_path, data, recipe
):
    args = ("--recipe", recipe, "--data", data / "good.jsonl", "--limit", 1)
    run = call("quantize", tiny_bundle, tmp_path / "q", *args)
    assert run.returncode == 0, run.stderr
    assert "4 to 20 tokens: pictures: 1" in run.stderr
    assert run.stderr.count("tokens: none: add pictures of this size") == 4


def test_a_checkpoint_is_exported_on_the_way(call, tiny_checkpoint, tiny_bundle, tmp_path):
    run = call("quantize", tiny_checkpoint, tmp_path / "q", "--recipe", "accurate")
    assert run.returncode == 0, run.stderr
    assert os.listdir(tmp_path) == ["q"]
    by_way_of_bundle = tmp_path / "by-way-of-bundle"
    run = call("quantize", tiny_bundle, by_way_of_bundle, "--recipe", "accurate")
    assert run.returncode == 0, run.stderr
    assert read_manifest(tmp_path / "q").files == read_manifest(by_way_of_bundle).files


def test_the_recipe_that_was_used_can_be_written_and_used_again(call, tiny_bundle, tmp_path):
    written = tmp_path / "used.toml"
    args = ("--recipe", "accurate", "--write-recipe", written)
    assert call("quantize", tiny_bundle, tmp_path / "q", *args).returncode == 0
    assert parse_recipe(written.read_text(), "used") == open_recipe("accurate")
    assert call("quantize", tiny_bundle, tmp_path / "r", "--recipe", written).returncode == 0
    one, other = (read_manifest(tmp_path / name) for name in "qr")
    assert one.files == other.files


def test_calibration_is_written_with_data_and_serves_without(
    call, tiny_bundle, tmp_path, data, recipe
):
    found = tmp_path / "found.json"
    args = ("--recipe", recipe, "--calibration", found, "--threads", 1)
    run = call("quantize", tiny_bundle, tmp_path / "q", *args, "--data", data / "good.jsonl")
    assert run.returncode == 0, run.stderr
    assert json.loads(found.read_text())["num_examples"] == 2
    before = found.read_bytes()
    run = call("quantize", tiny_bundle, tmp_path / "r", *args)
    assert run.returncode == 0, run.stderr
    assert found.read_bytes() == before
    one, other = (read_manifest(tmp_path / name) for name in "qr")
    assert one.files == other.files
    assert one.quantization == other.quantization


def test_static_scales_without_data_are_an_error_and_never_random(call, tiny_bundle, tmp_path):
    run = call("quantize", tiny_bundle, tmp_path / "q", "--recipe", "orin")
    check_error(
        run,
        1,
        "recipe orin needs real pictures",
        "--data",
        "nothing is ever calibrated on random data",
    )
    assert os.listdir(tmp_path) == []


def test_a_missing_picture_is_an_error_unless_it_may_be_skipped(
    call, tiny_bundle, tmp_path, data, recipe
):
    args = ("quantize", tiny_bundle, tmp_path / "q", "--recipe", recipe)
    args = (*args, "--data", data / "bad.jsonl")
    check_error(call(*args), 1, "gone.png")
    assert os.listdir(tmp_path) == []
    run = call(*args, "--skip-bad")
    assert run.returncode == 0, run.stderr
    assert "skipped gone: " in run.stderr
    assert (tmp_path / "q" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--recipe", "cpu", "--auto"], ["--auto and --gate go together"]),
        (["--recipe", "cpu", "--gate", "gate.toml"], ["--auto and --gate go together"]),
        (["--recipe", "cpu", "--auto", "--gate", "gate.toml"], ["--data"]),
        (["--recipe", "cpu", "--threads", "0"], ["threads"]),
        (["--recipe", "cpu", "--limit", "0"], ["limit"]),
        (["--recipe", "cpu", "--presets"], ["--presets"]),
        ([], ["--recipe"]),
    ],
)
def test_a_wrong_option_is_a_usage_error(call, tiny_bundle, tmp_path, args, words):
    run = call("quantize", tiny_bundle, tmp_path / "q", *args)
    check_error(run, 2, *words, "--help")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "x"\n[vision]\nformt = "int8"', ["formt", "mine.toml"]),
        ('name = "x"\n[[layers]]\npattern = "visual.block.*"\nformat = "float"', ["fits no layer"]),
        ("name = ", ["not TOML"]),
    ],
)
def test_a_recipe_that_does_not_fit_is_told_in_one_line(call, tiny_bundle, tmp_path, text, words):
    (tmp_path / "mine.toml").write_text(text)
    run = call("quantize", tiny_bundle, tmp_path / "q", "--recipe", tmp_path / "mine.toml")
    check_error(run, 1, *words)
    assert os.listdir(tmp_path) == ["mine.toml"]


def test_what_cannot_be_quantized_is_told(call, tiny_bundle, make_bundle, tmp_path):
    packed = make_bundle("tiny", "int8").bundle
    run = call("quantize", packed, tmp_path / "q", "--recipe", "cpu")
    check_error(run, 1, "quantized already")
    run = call("quantize", tmp_path / "nothing", tmp_path / "q", "--recipe", "cpu")
    check_error(run, 1, "nothing")
    run = call("quantize", tiny_bundle, tiny_bundle, "--recipe", "cpu")
    check_error(run, 1, "is what is read")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    run = call("quantize", tiny_bundle, tmp_path / "thesis", "--recipe", "cpu")
    check_error(run, 1, "left alone")
    run = call("quantize", tiny_bundle, tmp_path / "q", "--recipe", "cup")
    check_error(run, 2, "did you mean cpu")
    run = call("quantize", tiny_bundle, tmp_path / "no" / "q", "--recipe", "cpu")
    check_error(run, 1, "make it first")
    assert os.listdir(tmp_path) == ["thesis"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"schema": 2}'])
def test_a_corrupt_calibration_is_told_in_one_line(call, tiny_bundle, tmp_path, recipe, content):
    (tmp_path / "found.json").write_bytes(content)
    args = ("--recipe", recipe, "--calibration", tmp_path / "found.json")
    run = call("quantize", tiny_bundle, tmp_path / "q", *args)
    check_error(run, 1, "found.json")
    assert os.listdir(tmp_path) == ["found.json"]


def test_what_could_not_be_written_at_the_end_is_told_at_the_start(
    call, tiny_checkpoint, tmp_path, data, recipe
):
    start = ("quantize", tiny_checkpoint, tmp_path / "q", "--recipe", recipe)
    no = tmp_path / "no" / "x"
    good = ("--data", data / "good.jsonl")
    check_error(call(*start, *good, "--write-recipe", no), 1, "no is no directory")
    check_error(call(*start, *good, "--calibration", no), 1, "no is no directory")
    check_error(call(*start, "--calibration", tmp_path / "x"), 1, "x is no file", "--data")
    (tmp_path / "gate.toml").write_text("[image_embeds]\ncosin_min = 1\n")
    gate = ("--auto", "--gate", tmp_path / "gate.toml")
    check_error(call(*start, *good, *gate), 1, "gate.toml", "cosin_min")
    assert os.listdir(tmp_path) == ["gate.toml"]


def test_help_names_the_presets(call):
    run = call("quantize", "--help")
    assert run.returncode == 0
    for name in ("accurate", "cpu", "orin", "smallest", "thor", "--skip-bad", "--calibration"):
        assert name in run.stdout


def test_no_torch_is_loaded(run_cli, tiny_bundle, tmp_path):
    run = run_cli(
        "quantize",
        tiny_bundle,
        tmp_path / "q",
        "--recipe",
        "accurate",
        blocked=("torch", "transformers", "matplotlib", "ray", "pyarrow"),
    )
    assert run.returncode == 0, run.stderr
