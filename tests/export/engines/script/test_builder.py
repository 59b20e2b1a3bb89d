"""The builder inside emitted scripts: options read back, and real engines built with it."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vlmedge.export.engines.script import builder as script_builder
from vlmedge.export.engines.script.builder import (
    find_shape,
    main,
    read_bytes,
    read_options,
    read_shapes,
)
from vlmedge.export.engines.script.options import make_options
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.runtime.backends.trt.engine_set import Profile, ShapeRange

SIDES = st.lists(st.integers(1, 9999), min_size=1, max_size=5).map(tuple)
NAMES = st.sampled_from(["ids", "mask", "past.0.key", "past.1.key", "past.1.value", "/a/b"])


@given(st.lists(st.dictionaries(NAMES, SIDES, min_size=1), min_size=1, max_size=4))
def test_it_reads_what_scripts_write(profiles):
    made = [
        Profile("decode", {name: ShapeRange(side, side, side) for name, side in shapes.items()})
        for shapes in profiles
    ]
    request = read_options(list(make_options(made, BuildSettings(), "10.3")))
    assert len(request.profiles) == len(profiles)
    for read, shapes in zip(request.profiles, profiles, strict=True):
        for name, sides in shapes.items():
            for side in ("--minShapes", "--optShapes", "--maxShapes"):
                assert find_shape(read[side], name) == sides


def test_an_input_that_was_given_no_shape_has_none():
    assert find_shape(read_shapes("past.*.key:1x2,ids:3"), "past.0.value") is None


def test_a_name_of_its_own_counts_before_a_pattern():
    assert find_shape(read_shapes("past.*.key:1,past.7.key:2"), "past.7.key") == (2,)


@pytest.mark.parametrize("argument", ["--fp16", "--minShapes=x:1", "--onnx", "--onnx=", "x.onnx"])
def test_an_option_that_no_script_writes_is_refused(argument):
    with pytest.raises(ValueError, match="not known here"):
        read_options([argument])


def test_profiles_out_of_order_are_refused():
    with pytest.raises(ValueError, match="follows 0 others"):
        read_options(["--profile=1"])


@pytest.mark.parametrize(("text", "size"), [("workspace:1M", 1 << 20), ("workspace:512M", 1 << 29)])
def test_memory_is_read_in_mib(text, size):
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["workspace:1G", "dlaSRAM:1M", "workspace:", "1M"])
def test_another_pool_or_unit_is_refused(text):
    with pytest.raises(ValueError, match="needed workspace and MiB"):
        read_bytes(text)


def test_it_imports_nothing_but_the_standard_library(tmp_path):
    """Its text runs alone, as a script carries it; without TensorRT it says so and fails."""
    text = Path(script_builder.__file__).read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", text, "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "No module named 'tensorrt'" in done.stderr


@pytest.fixture
def tensorrt(monkeypatch):
    """TensorRT-RTX under the name of TensorRT, building for SM86."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")

    class Builder(rtx.Builder):
        def create_builder_config(self):
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
            return config

    module = type(sys)("tensorrt")
    module.__dict__.update({**rtx.__dict__, "Builder": Builder})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def write_graph(path: Path, operator: str = "MatMul") -> Path:
    matrix = numpy_helper.from_array(np.ones((8, 8), np.float16), "matrix")
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", 8]) for name in "xy"
    ]
    node = helper.make_node(operator, ["x", "matrix"], ["y"])
    graph = helper.make_graph([node], "graph", shapes[:1], shapes[1:], [matrix])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


SHAPES = ["--profile=0", "--minShapes=x:1x8", "--optShapes=x:2x8", "--maxShapes=x:4x8"]
SHAPES += ["--profile=1", "--minShapes=x:5x8", "--optShapes=x:6x8", "--maxShapes=x:9x8"]


BUILDS = ("10.3.0", "10.16.1", "11.1.0")


@pytest.mark.parametrize("version", BUILDS)
def test_float32_is_not_rounded_to_tf32(install_fake, tmp_path, version):
    """TensorRT would by itself, on every GPU from Ampere on."""
    module = install_fake(version)
    graph, engine = write_graph(tmp_path / "graph.onnx"), tmp_path / "graph.engine"
    options = make_options(
        [Profile("decode", {"x": ShapeRange((1, 8), (2, 8), (4, 8))})], BuildSettings(), version
    )
    assert main([f"--onnx={graph}", f"--saveEngine={engine}", *options]) == 0
    assert ("clear_flag", "TF32") in module.calls
    assert engine.read_bytes() == module.plan


@pytest.mark.parametrize(
    ("content", "used", "is_told"),
    [(None, [b""], False), (b"old", [b"old"], False), (b"other GPU", [b"other GPU", b""], True)],
)
def test_a_timing_cache_of_another_gpu_is_told_and_not_used(
    install_fake, tmp_path, capfd, content, used, is_told
):
    """As `vlmedge build` has it: kernels that were measured elsewhere are not the fastest here."""
    module = install_fake("10.3.0")
    graph, engine = write_graph(tmp_path / "graph.onnx"), tmp_path / "graph.engine"
    cache = tmp_path / "mine.timing"
    if content is not None:
        cache.write_bytes(content)
    options = [f"--onnx={graph}", f"--saveEngine={engine}", f"--timingCacheFile={cache}", *SHAPES]
    assert main(options) == 0
    assert [value for name, value in module.calls if name == "cache"] == used
    assert not any(ignored for name, ignored in module.calls if name == "ignore_mismatch")
    assert cache.read_bytes() == used[-1] + b"+measured"
    assert ("made anew" in capfd.readouterr().out) == is_told


def test_it_builds_a_real_engine(tensorrt, tmp_path, capfd):
    graph, engine = write_graph(tmp_path / "graph.onnx"), tmp_path / "graph.engine"
    options = ["--skipInference", "--stronglyTyped", "--noTF32", *SHAPES]
    options += ["--memPoolSize=workspace:64M"]
    options += ["--builderOptimizationLevel=1", "--allowWeightStreaming"]
    assert main([f"--onnx={graph}", f"--saveEngine={engine}", *options]) == 0
    assert engine.stat().st_size > 1000
    assert "[E]" not in capfd.readouterr().out


def test_a_graph_that_tensorrt_refuses_is_an_error_in_trtexecs_form(tensorrt, tmp_path, capfd):
    graph, engine = write_graph(tmp_path / "graph.onnx", "NoSuchNode"), tmp_path / "graph.engine"
    assert main([f"--onnx={graph}", f"--saveEngine={engine}", "--stronglyTyped", *SHAPES]) == 1
    assert "[E] " in capfd.readouterr().out
    assert not engine.exists()


def test_a_dynamic_input_without_shapes_is_an_error(tensorrt, tmp_path, capfd):
    """trtexec would build it for a size of 1 in every dynamic dimension, with a warning."""
    graph, engine = write_graph(tmp_path / "graph.onnx"), tmp_path / "graph.engine"
    options = [option.replace("=x:", "=z:") for option in SHAPES]
    assert main([f"--onnx={graph}", f"--saveEngine={engine}", "--stronglyTyped", *options]) == 1
    assert "no shapes for the dynamic input x" in capfd.readouterr().out


def test_it_tells_the_version(tensorrt, capfd):
    rtx = importlib.import_module("tensorrt_rtx")
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.strip() == rtx.__version__


def test_without_a_gpu_it_says_so(tensorrt, capfd, monkeypatch):
    def fail(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(script_builder.ctypes, "CDLL", fail)
    assert main(["--gpu"]) == 1
    assert "[E] libcuda.so.1: cannot open" in capfd.readouterr().out


class FakeCuda:
    """The few calls of the CUDA driver, on an Orin."""

    def __init__(self, name, failing=""):
        self.failing = failing

    def __getattr__(self, call):
        def answer(*arguments):
            if call == self.failing:
                return 100  # CUDA_ERROR_NO_DEVICE
            if call == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            if call == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            return 0

        answer.__name__ = call
        return answer


def test_it_describes_the_gpu_as_trtexec_does(tensorrt, capfd, monkeypatch):
    monkeypatch.setattr(script_builder.ctypes, "CDLL", FakeCuda)
    assert main(["--gpu"]) == 0
    assert capfd.readouterr().out == "Selected Device: Orin\nCompute Capability: 8.7\n"


def test_a_driver_that_refuses_is_named(tensorrt, capfd, monkeypatch):
    monkeypatch.setattr(script_builder.ctypes, "CDLL", lambda name: FakeCuda(name, "cuInit"))
    assert main(["--gpu"]) == 1
    assert "cuInit of the CUDA driver returned 100" in capfd.readouterr().out
