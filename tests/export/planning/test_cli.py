"""`vlmedge plan`, as a person and a script call it."""

import json
import re
import subprocess
import sys

import pytest

from vlmedge.export.planning.cli import parse_seconds
from vlmedge.export.planning.devices import DEVICES
from vlmedge.runtime.cli.main import main

# What a board has not: the runtime alone is installed there
NOT_ON_A_BOARD = ("onnx", "onnx_ir", "ml_dtypes", "tomllib", "torch", "onnxruntime", "tensorrt")


@pytest.fixture
def run(capsys):
    """run(*args) -> exit code, stdout, stderr."""

    def run(*args):
        code = main(["plan", *map(str, args)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_what_fits_exits_with_0_and_prints_every_table(run, config_folder):
    options = ("--device", "orin-nano-8gb", "--headless", "--recipe", "orin", "--images", 2)
    options += ("--video", "30s")
    code, out, err = run(config_folder("2b"), *options, "--context", 4096)
    assert (code, err) == (0, "")
    for word in ("qwen2-vl-2b, recipe orin", "2 x 1196", "clip, 30 pairs", "KV cache", "in all"):
        assert word in out
    assert re.search(r"first token after \d+ ms .* then [\d.]+ tokens/s", out)
    assert "fits\n" in out
    assert "--max-pixels" in out
    assert "--context 32768" in out


def test_what_does_not_fit_exits_with_1_and_says_what_does(run, config_folder):
    code, out, _ = run(config_folder("2b"), "--device", "orin-nano-8gb", "--headless")
    assert code == 1
    assert "does not fit: running takes" in out
    assert "does not fit: building the engines takes" in out
    for option in ('residency="one"', "(--split 2)", "(--recipe accurate)"):
        assert option in out
    options = ("--device", "orin-nano-8gb", "--headless", "--recipe", "accurate")
    assert run(config_folder("2b"), *options)[0] == 0


def test_what_runs_in_no_way_says_so(run, config_folder):
    code, out, _ = run(config_folder("7b"), "--device", "orin-nano-8gb")
    assert code == 1
    assert "nothing that was tried fits" in out


def test_a_coarser_recipe_is_offered(run, config_folder):
    code, out, _ = run(config_folder("7b"), "--device", "orin-nx-16gb")
    assert code == 1
    assert re.search(r"fits: weights of \d+ MiB \(--recipe \w+( --split \d+)?\)", out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "nano"), "device is 'nano', needed one of"),
        (("--image", "3x"), "size is '3x'"),
        (("--video", "soon"), "video is 'soon'"),
        (("--recipe", "orim"), "did you mean orin"),
        (("--device", "orin-nano-8gb", "--recipe", "thor"), "--recipe orin"),
        (("--device", "orin-nano-8gb", "--target", "jetpack-5"), "target is"),
        (("--context", "99999999"), "positions end at 32768"),
        (("--split", "99", "--device", "thor"), "split is 99"),
    ],
)
def test_a_wrong_option_exits_with_2_in_one_line(run, config_folder, options, message):
    code, out, err = run(config_folder("2b"), *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [("--images", "-1"), ("--dtype", "fp8"), ("--batch", "0")])
def test_options_out_of_range_exit_with_2(run, config_folder, options):
    assert run(config_folder("2b"), *options)[0] == 2


def test_a_missing_model_exits_with_2(run, tmp_path):
    code, _, err = run(tmp_path / "gone")
    assert code == 2
    assert "neither a directory nor a hub id" in err


def test_json_says_the_same(run, config_folder):
    options = ("--device", "agx-orin-64gb", "--recipe", "orin", "--json")
    code, out, _ = run(config_folder("2b"), *options)
    report = json.loads(out)
    assert code == 0
    assert report["fits"] is True
    assert report["target"] == "jetpack-6.2"
    assert report["recipe"] == "orin"
    assert report["tokens"]["visuals"][0]["tokens"] == 1196
    assert report["run"]["bytes"] == sum(part["bytes"] for part in report["run"]["parts"])
    assert report["first_token_s"] == pytest.approx(
        sum(cost["seconds"] for cost in report["costs"][:2])
    )
    assert {a["option"].split()[0] for a in report["alternatives"]} == {"--max-pixels", "--context"}
    code, out, _ = run(config_folder("2b"), "--device", "orin-nano-8gb", "--json")
    assert code == 1
    assert json.loads(out)["problems"]


def test_explain_prints_every_source_and_factor(run, config_folder):
    device = DEVICES["orin-nano-8gb"]
    _, out, _ = run(config_folder("2b"), "--device", device.name, "--explain")
    flat = " ".join(out.split())
    for source in device.sources.values():
        assert " ".join(source.split())[:60] in flat
    assert "102.4 GB/s" in out
    assert out.count("fitted") >= 3


def test_this_machine_is_the_default(run, make_bundle):
    code, out, _ = run(make_bundle("tiny").bundle)
    assert code == 0
    assert "this machine" in out


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("30", 30), ("2.5 s", 2.5), ("2min", 120), ("0", 0)]
)
def test_clips_are_given_in_seconds(text, seconds):
    assert parse_seconds(text) == seconds


def run_on_a_board(*args):
    """The command in a process that can't import what a board has not."""
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {NOT_ON_A_BOARD!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from vlmedge.runtime.cli.main import main\n"
        "sys.exit(main(['plan', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_board_plans_a_bundle_with_the_runtime_alone(lowered):
    done = run_on_a_board(lowered("orin", "jetpack-6.2").bundle, "--device", "orin-nano-8gb")
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe orin, bfloat16, for jetpack-6.2" in done.stdout
    assert "counted with its tokenizer" in done.stdout


def test_a_board_plans_a_float_checkpoint_and_says_why_no_recipe(config_folder):
    folder = config_folder("2b")
    done = run_on_a_board(folder, "--device", "agx-orin-64gb")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_on_a_board(folder, "--device", "agx-orin-64gb", "--recipe", "orin")
    assert done.returncode == 2
    assert "recipes need Python 3.11 and pip install vlmedge[export]" in done.stderr
