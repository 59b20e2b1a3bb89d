"""`vlmedge build`: results on stdout, one line for an error, and exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlmedge.runtime.backends.trt import cuda_driver
from vlmedge.runtime.backends.trt.engine_set import Gpu, read_engine_set
from vlmedge.runtime.cli.main import main
from vlmedge.runtime.errors import BackendError

SMALL = ("--max-pixels", "12544", "--prefill-tokens", "16")


@pytest.fixture
def bundle(lower, tmp_path):
    """A copy to build in."""
    return Path(shutil.copytree(lower("jetpack-6.2"), tmp_path / "bundle"))


@pytest.fixture
def rtx(install_fake):
    """A TensorRT-RTX that is a fake."""
    return install_fake("1.7.1", rtx=True)


def run(capsys, *args):
    code = main(["build", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_result_is_a_table_of_engines(rtx, bundle, capsys):
    code, out, err = run(capsys, bundle, "--compute-capability", "8.6", *SMALL)
    assert code == 0
    assert "sm86-tensorrt_rtx1.7.1-bfloat16" in out
    assert "tensorrt_rtx 1.7.1, bfloat16, for compute capability 8.6" in out
    for name in ("vision.engine", "decoder.engine"):
        assert name in out
    assert err == ""


def test_warnings_go_to_stderr_with_the_engine(rtx, bundle, capsys):
    rtx.says = [("WARNING", "Tactic needs memory")]
    _, out, err = run(capsys, bundle, "--compute-capability", "8.6", *SMALL)
    assert err.splitlines() == [
        "vlmedge build: vision: Tactic needs memory",
        "vlmedge build: decoder: Tactic needs memory",
    ]
    assert "Tactic" not in out


def test_a_warning_that_ends_a_build_can_be_accepted_and_that_is_recorded(rtx, bundle, capsys):
    rtx.says = [("WARNING", "Unused Input: spare")]
    args = (bundle, "--compute-capability", "8.6", *SMALL)
    code, _, err = run(capsys, *args)
    assert code == 1
    assert "Unused Input: spare (nothing reads this input" in err
    code, _, err = run(capsys, *args, "--accept-warning", "input: spare")
    assert code == 0
    assert "vlmedge build: decoder: Unused Input: spare" in err
    (folder,) = (bundle / "engines").iterdir()
    assert read_engine_set(folder).settings["accept_warning"] == "input: spare"
    code, _, err = run(capsys, *args, "--accept-warning", "x", "--emit-script", bundle / "x.sh")
    assert code == 2


def test_json_is_one_object_with_the_set_as_it_was_written(rtx, bundle, capsys):
    code, out, _ = run(capsys, bundle, "--compute-capability", "12.0", "--json", *SMALL)
    assert code == 0
    result = json.loads(out)
    folder = Path(result["folder"])
    assert result["engine_set"]["command"] == read_engine_set(folder).command
    assert result["engine_set"]["gpu"] == {"name": "", "sm": "12.0"}
    assert set(result["seconds_by_engine"]) == set(result["peak_bytes"]) == {"vision", "decoder"}
    assert result["warnings"] == {"vision": [], "decoder": []}


def test_the_gpu_is_named_where_there_is_one(install_fake, bundle, capsys, monkeypatch):
    install_fake("10.3.0")
    orin = Gpu("Orin", "8.7")
    monkeypatch.setattr(cuda_driver, "CudaDriver", lambda: type("Driver", (), {"gpu": orin}))
    code, out, _ = run(capsys, bundle, *SMALL)
    assert code == 0
    assert "tensorrt 10.3.0, bfloat16, for Orin" in out


@pytest.mark.parametrize(
    "args",
    [
        ["--split", "0"],
        ["--optimization-level", "6"],
        ["--compute-capability", "ampere"],
        ["--builder", "onnxruntime"],
        ["--fp16"],
        ["--max-batch", "many"],
    ],
)
def test_a_wrong_option_exits_with_two_in_one_line(rtx, bundle, capsys, args):
    code, out, err = run(capsys, bundle, *args)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("vlmedge build: ")


def test_what_fails_exits_with_one_in_one_line(rtx, bundle, capsys, make_bundle, tmp_path):
    rtx.fails = [("/n", "Swish", "unknown\noperator")]
    for args in (
        (bundle, "--compute-capability", "8.6"),
        (bundle, "--compute-capability", "8.6", "--context", "999999999"),
        (bundle, "--compute-capability", "8.7"),
        (make_bundle("tiny").bundle, "--compute-capability", "8.6"),
        (tmp_path / "nothing",),
    ):
        code, out, err = run(capsys, *args)
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1


def test_a_bundle_for_onnxruntime_is_told_what_to_do(rtx, make_bundle, capsys):
    _, _, err = run(capsys, make_bundle("tiny").bundle)
    assert "export it with --target first, as in vlmedge export" in err


def test_no_tensorrt_at_all_says_what_to_install(bundle, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    code, _, err = run(capsys, bundle)
    assert code == 1
    for words in ("JetPack", "pip install tensorrt-rtx-cu13", "--emit-script"):
        assert words in err


def test_emitting_a_script_needs_no_tensorrt(bundle, tmp_path, capsys, monkeypatch):
    def refuse():
        raise BackendError("no GPU")

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(cuda_driver, "CudaDriver", refuse)
    script = tmp_path / "build.sh"
    code, out, _ = run(capsys, bundle, "--emit-script", script)
    assert code == 0
    assert script.is_file()
    assert "tar -xf build.tar && bash build.sh" in out
    assert not (bundle / "engines").exists()
    code, out, _ = run(capsys, bundle, "--emit-script", script, "--json")
    assert json.loads(out)["script"] == str(script)


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_a_builder_chosen_for_a_script_is_refused(bundle, tmp_path, capsys, builder):
    script = tmp_path / "build.sh"
    code, out, err = run(capsys, bundle, "--builder", builder, "--emit-script", script)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "a script builds with the TensorRT of the device: leave out --builder" in err
    assert not script.exists()


def test_help_says_where_engines_run_and_what_to_do_on_a_small_board(capsys):
    code, out, _ = run(capsys, "--help")
    text = " ".join(out.split())
    assert code == 0
    assert "build on the device" in text
    assert "--split 4" in text


def test_the_command_loads_neither_onnx_nor_tensorrt_to_show_its_help():
    code = (
        "import sys\nfrom vlmedge.runtime.cli.main import main\n"
        "main(['build', '--help'])\n"
        "heavy = {'onnx', 'onnx_ir', 'ml_dtypes', 'tensorrt', 'tensorrt_rtx', 'onnxruntime'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
