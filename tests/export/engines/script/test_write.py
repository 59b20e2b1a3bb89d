"""The emitted script: what it says, and that it runs to the end with a trtexec of our own."""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlmedge.export.engines.messages import Message, find_refusals
from vlmedge.export.engines.profiles import derive_profiles
from vlmedge.export.engines.script.options import VERSIONS, list_options
from vlmedge.export.engines.script.write import write_script
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.runtime.backends.trt.engine_set import read_engine_set, record_weights
from vlmedge.runtime.bundle.manifest import (
    CoverageEntry,
    FileRecord,
    GraphSpec,
    TargetRecord,
    TensorSpec,
)
from vlmedge.runtime.bundle.manifest_file import read_manifest, to_json
from vlmedge.runtime.errors import BackendError

LAYERS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB = 2, 2, 4, 8, 16
DTYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float32": TensorProto.FLOAT,
}


def cache_specs(kind: str, length: str) -> list[TensorSpec]:
    return [
        TensorSpec(f"{kind}.{i}.{part}", "float32", ("batch", KV_HEADS, length, HEAD_DIM))
        for i in range(LAYERS)
        for part in ("key", "value")
    ]


GRAPHS = {
    "vision": (
        [
            TensorSpec("pixel_values", "uint8", ("num_images", "num_patches", 588)),
            TensorSpec("position_ids", "int64", ("num_images", "num_patches", 2)),
        ],
        [TensorSpec("image_embeds", "float32", ("num_images", "num_tokens", HIDDEN))],
    ),
    "decoder": (
        [
            TensorSpec("inputs_embeds", "float32", ("batch", "sequence", HIDDEN)),
            TensorSpec("position_ids", "int64", (3, "batch", "sequence")),
            TensorSpec("logit_index", "int64", ("batch",)),
            TensorSpec("attention_mask", "bool", ("batch", 1, "sequence", "total")),
            *cache_specs("past_key_values", "capacity"),
        ],
        [
            TensorSpec("logits", "float32", ("batch", VOCAB)),
            *cache_specs("present", "sequence"),
        ],
    ),
}


def value_info(spec: TensorSpec):
    return helper.make_tensor_value_info(spec.name, DTYPES[spec.dtype], list(spec.shape))


def write_graph(folder: Path, name: str) -> None:
    """A graph that reads all of its inputs; its one matrix lies in a file of its own."""
    inputs, outputs = GRAPHS[name]
    rows = 588 if name == "vision" else HIDDEN
    columns = HIDDEN if name == "vision" else VOCAB
    data = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    (folder / f"{name}.onnx.data").write_bytes(data.tobytes())
    matrix = numpy_helper.from_array(data, "matrix")
    matrix.ClearField("raw_data")
    matrix.data_location = TensorProto.EXTERNAL
    for key, value in (("location", f"{name}.onnx.data"), ("offset", 0), ("length", data.nbytes)):
        entry = matrix.external_data.add()
        entry.key, entry.value = key, str(value)
    nodes, scalars = [], []
    for spec in inputs:
        source = spec.name
        if spec.dtype != "float32":
            nodes.append(helper.make_node("Cast", [source], [f"{source}/f"], to=TensorProto.FLOAT))
            source = f"{source}/f"
        nodes.append(helper.make_node("ReduceMean", [source], [f"{spec.name}/mean"], keepdims=0))
        scalars.append(f"{spec.name}/mean")
    nodes.append(helper.make_node("Sum", scalars, ["sum"]))
    if name == "vision":
        shape = numpy_helper.from_array(np.array([0, -1, 4 * 588], np.int64), "fours")
        first = numpy_helper.from_array(np.array([0], np.int64), "from")
        last = numpy_helper.from_array(np.array([588], np.int64), "to")
        axis = numpy_helper.from_array(np.array([2], np.int64), "axis")
        initializers = [matrix, shape, first, last, axis]
        nodes += [
            helper.make_node("Reshape", ["pixel_values/f", "fours"], ["tokens"]),
            helper.make_node("Slice", ["tokens", "from", "to", "axis"], ["corners"]),
            helper.make_node("MatMul", ["corners", "matrix"], ["product"]),
            helper.make_node("Add", ["product", "sum"], ["image_embeds"]),
        ]
    else:
        axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
        row = numpy_helper.from_array(np.array([0, 1, -1, 1], np.int64), "row")
        last = numpy_helper.from_array(np.array([2], np.int64), "last")
        initializers = [matrix, axis, row, last]
        nodes += [
            helper.make_node("ReduceMean", ["inputs_embeds", "axis"], ["token"], keepdims=0),
            helper.make_node("MatMul", ["token", "matrix"], ["product"]),
            helper.make_node("Add", ["product", "sum"], ["logits"]),
            helper.make_node("ReduceMean", ["inputs_embeds", "last"], ["flat"]),
            helper.make_node("Reshape", ["flat", "row"], ["rows"]),
        ]
        for spec in inputs[4:]:
            present = spec.name.replace("past_key_values", "present")
            mean = f"{present}/mean"
            nodes.append(helper.make_node("ReduceMean", [spec.name, "last"], [mean]))
            nodes.append(helper.make_node("Add", [mean, "rows"], [present]))
    graph = helper.make_graph(
        nodes, name, [value_info(i) for i in inputs], [value_info(o) for o in outputs], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(folder / f"{name}.onnx"))


@pytest.fixture(scope="module")
def original(make_bundle, tmp_path_factory):
    """A bundle for TensorRT whose graphs are small and read everything."""
    source = make_bundle("tiny").bundle
    folder = tmp_path_factory.mktemp("bundles") / "orin bundle"
    folder.mkdir()
    manifest = read_manifest(source)
    kept = (manifest.tokenizer_file, manifest.chat_template_file)
    kept = (*kept, *(name for name in manifest.files if name.startswith("embedding")))
    for name in kept:
        shutil.copy(source / name, folder / name)
    for name in GRAPHS:
        write_graph(folder, name)
    files = {
        path.name: FileRecord(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    }
    manifest = dataclasses.replace(
        manifest,
        flavor="tensorrt",
        target=TargetRecord("jetpack-6.2", "10.3", "float32", "append", None),
        graphs={
            name: GraphSpec(f"{name}.onnx", tuple(inputs), tuple(outputs))
            for name, (inputs, outputs) in GRAPHS.items()
        },
        coverage=(),
        files=files,
    )
    (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    return folder, manifest


@pytest.fixture
def bundle(original, tmp_path):
    """A copy of it that a test may build in."""
    folder, manifest = original
    return shutil.copytree(folder, tmp_path / "host" / folder.name), manifest


SETTINGS = BuildSettings(
    context=64, prefill_tokens=16, workspace_mib=256, optimization_level=2, weight_streaming=True
)

TRTEXEC = """#!/usr/bin/env bash
# Behaves as trtexec does: its banner, what it says of the GPU, then the engine.
printf '&&&& RUNNING TensorRT.trtexec [TensorRT v%s] # %s\\n' "${FAKE_VERSION:-100300}" "$*"
if [[ ${1:-} == --help ]]; then exit 0; fi
printf '[11/22/2026-10:00:00] [I] Selected Device: %s\\n' "${FAKE_GPU:-Orin}"
printf '[11/22/2026-10:00:00] [I] Compute Capability: %s\\n' "${FAKE_SM-8.7}"
graph='' engine='' cache=''
for argument in "$@"; do
  case $argument in
    --onnx=*) graph=${argument#*=} ;;
    --saveEngine=*) engine=${argument#*=} ;;
    --timingCacheFile=*) cache=${argument#*=} ;;
  esac
done
[[ -f $graph ]] || { printf '[E] Could not open file %s\\n' "$graph"; exit 1; }
printf '%s\\n' "$@" '' >>"$FAKE_RECORD"
printf '%s' "${FAKE_LOG:-}"
if [[ -n ${FAKE_FAILURE:-} ]]; then printf '[E] Error[10]: %s\\n' "$FAKE_FAILURE"; exit 1; fi
printf 'timings' >"$cache"
printf 'engine of %s' "$(basename "$graph")" >"$engine"
"""


@pytest.fixture
def device(tmp_path):
    """A folder that stands for the board: a trtexec, and a way to run what was carried there."""
    folder = tmp_path / "device"
    tools = folder / "tools"
    tools.mkdir(parents=True)
    (tools / "trtexec").write_text(TRTEXEC, encoding="utf-8")
    (tools / "trtexec").chmod(0o755)

    class Device:
        home = folder
        record = folder / "calls.txt"

        def unpack(self, archive: Path) -> None:
            subprocess.run(["tar", "-xf", archive], cwd=folder, check=True)

        def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
            path = f"{tools}{os.pathsep}{os.environ['PATH']}"
            return subprocess.run(
                ["bash", *arguments],
                cwd=folder,
                env={"PATH": path, "FAKE_RECORD": str(self.record), **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

        def list_calls(self) -> list[list[str]]:
            return [call.split("\n") for call in self.record.read_text().strip().split("\n\n")]

    return Device()


def emit(bundle, settings=SETTINGS, name="build orin.sh"):
    folder, manifest = bundle
    return write_script(folder, manifest, settings, folder.parent / name)


def find_tool(name: str) -> str:
    """A program of this environment or of the machine; skips without it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_the_script_can_be_run_by_whoever_may_read_it(bundle):
    mode = emit(bundle).script.stat().st_mode & 0o777
    assert mode & 0o111 == (mode & 0o444) >> 2 != 0


def test_bash_parses_the_script(bundle):
    done = subprocess.run(
        ["bash", "-n", emit(bundle).script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_shellcheck_finds_nothing_in_the_script(bundle):
    tool = find_tool("shellcheck")
    done = subprocess.run(
        [tool, "--shell=bash", emit(bundle).script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_bundle_that_was_carried_over_is_built_to_the_end(bundle, device):
    """The runtime's own reader takes what a shell wrote."""
    written = emit(bundle)
    device.unpack(written.archive)
    done = device.run(written.script.name)
    assert done.returncode == 0, done.stderr
    folder = device.home / bundle[0].name / "engines" / "sm87-tensorrt10.3.0-float32"
    assert Path(device.home / done.stdout.strip()).resolve() == folder.resolve()
    engines = read_engine_set(folder)
    assert engines.builder == "tensorrt"
    assert engines.version == "10.3.0"
    assert dataclasses.astuple(engines.gpu) == ("Orin", "8.7")
    assert engines.command == "bash 'build orin.sh'"
    assert engines.settings == SETTINGS.to_record()
    manifest = bundle[1]
    assert engines.weights_sha256 == record_weights(manifest)
    profiles = derive_profiles(manifest, SETTINGS)
    for graph in GRAPHS:
        (engine,) = engines.chains[graph]
        content = f"engine of {graph}.onnx".encode()
        assert (folder / engine.file).read_bytes() == content
        assert engine.bytes == len(content)
        assert engine.sha256 == hashlib.sha256(content).hexdigest()
        assert engine.profiles == profiles[graph]
        assert engine.inputs == manifest.graphs[graph].inputs
        assert engine.outputs == manifest.graphs[graph].outputs
        graph_file = bundle[0] / f"{graph}.onnx"
        assert engines.graph_sha256[graph] == hashlib.sha256(graph_file.read_bytes()).hexdigest()
    assert not list(folder.parent.glob(".*")), "something temporary is left"
    assert not (folder / ".lock").exists()


def test_trtexec_gets_only_options_that_every_newer_version_knows(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    assert device.run(written.script.name).returncode == 0
    calls = device.list_calls()
    assert len(calls) == len(GRAPHS)
    for call in calls:
        names = {argument.partition("=")[0] for argument in call}
        for version in VERSIONS:
            assert names <= list_options(version), version
        assert "--weightless" not in names
    assert not {"--fp16", "--int8"} & names


def test_trtexec_gets_every_shape_of_every_profile(bundle, device):
    """The shapes of the profiles, read back out of what trtexec was called with."""
    written = emit(bundle)
    device.unpack(written.archive)
    assert device.run(written.script.name).returncode == 0
    for call, (graph, profiles) in zip(
        device.list_calls(), derive_profiles(bundle[1], SETTINGS).items(), strict=True
    ):
        assert call[0].endswith(f"{graph}.onnx")
        assert [each for each in call if each.startswith("--profile=")] == [
            f"--profile={index}" for index in range(len(profiles))
        ]
        for side in ("min", "opt", "max"):
            lines = [each for each in call if each.startswith(f"--{side}Shapes=")]
            for line, profile in zip(lines, profiles, strict=True):
                shapes = dict(item.rsplit(":", 1) for item in line.partition("=")[2].split(","))
                for name, extent in profile.shapes.items():
                    shown = shapes.get(name) or shapes[re.sub(r"\.\d+\.", ".*.", name)]
                    assert tuple(map(int, shown.split("x"))) == getattr(extent, side)


def test_an_older_set_of_the_same_name_is_replaced(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    assert device.run(written.script.name).returncode == 0
    folder = device.home / bundle[0].name / "engines" / "sm87-tensorrt10.3.0-float32"
    (folder / "left over").touch()
    assert device.run(written.script.name).returncode == 0
    assert not (folder / "left over").exists()
    assert read_engine_set(folder)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


MOVER = """#!/bin/sh
# mv, that can't put the new set in its place; what it does meanwhile is of one test
case "$3" in
  */.sm87-tensorrt10.3.0-float32.partial-??????) {meanwhile} ;;
esac
exec {mv} "$@"
"""


def put_mover(device, meanwhile):
    tool = device.home / "tools" / "mv"
    tool.write_text(MOVER.format(meanwhile=meanwhile, mv=shutil.which("mv")))
    tool.chmod(0o755)


def test_an_older_set_comes_back_when_the_new_one_can_not_take_its_place(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    assert device.run(written.script.name).returncode == 0
    folder = device.home / bundle[0].name / "engines" / "sm87-tensorrt10.3.0-float32"
    (folder / "of the old set").touch()
    put_mover(device, "exit 1")
    for _ in range(2):  # the second run would remove what the first left behind
        done = device.run(written.script.name)
        assert done.returncode == 1
        assert "can't be moved to" in done.stderr
        assert (folder / "of the old set").is_file()
        assert read_engine_set(folder)
        assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_a_finished_set_is_not_taken_for_a_leftover_by_another_build(bundle, device):
    """Another one begins, and ends, between the last write and the renaming."""
    written = emit(bundle)
    device.unpack(written.archive)
    folder = device.home / bundle[0].name / "engines" / "sm87-tensorrt10.3.0-float32"
    code = (
        "import sys, pathlib; from vlmedge.quant.files.staged_folder import remove_stale; "
        "print(remove_stale(pathlib.Path(sys.argv[1])), file=sys.stderr)"
    )
    put_mover(device, f"{sys.executable} -c {shlex.quote(code)} {shlex.quote(str(folder))}")
    done = device.run(written.script.name)
    assert done.returncode == 0, done.stderr
    assert "[]" in done.stderr.splitlines()
    assert read_engine_set(folder)
    assert not (folder / ".lock").exists()


def test_what_a_killed_build_left_is_removed_and_a_running_one_is_not(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    engines = device.home / bundle[0].name / "engines"
    names = [f".sm87-tensorrt10.3.0-float32.partial-{kind}" for kind in ("dead", "lost", "busy")]
    for name in names:
        (engines / name).mkdir(parents=True)
        (engines / name / "half.engine").touch()
    (engines / names[0] / ".lock").touch()
    with (engines / names[2] / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert device.run(written.script.name).returncode == 0
    left = sorted(path.name for path in engines.iterdir() if path.is_dir())
    assert left == [names[2], "sm87-tensorrt10.3.0-float32"]


def test_the_timing_cache_is_kept_beside_the_sets(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    assert device.run(written.script.name).returncode == 0
    cache = device.home / bundle[0].name / "engines" / "sm87-tensorrt10.3.0.timing"
    assert cache.read_text() == "timings"


def test_a_timing_cache_of_ones_own_is_written_and_its_folder_must_be_there(bundle, device):
    written = emit(bundle, dataclasses.replace(SETTINGS, timing_cache=Path("kept here/a.timing")))
    device.unpack(written.archive)
    done = device.run(written.script.name)
    assert done.returncode == 1
    assert "kept here/a.timing, but there is no such directory" in done.stderr
    assert not device.record.exists()
    (device.home / "kept here").mkdir()
    assert device.run(written.script.name).returncode == 0
    assert (device.home / "kept here/a.timing").read_text() == "timings"


def test_a_bundle_elsewhere_is_built_there(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    (device.home / bundle[0].name).rename(device.home / "else where")
    assert device.run(written.script.name).returncode == 1
    done = device.run(written.script.name, "else where")
    assert done.returncode == 0, done.stderr
    assert read_engine_set(device.home / "else where/engines/sm87-tensorrt10.3.0-float32")


REFUSALS = {
    "an older TensorRT": ({"FAKE_VERSION": "8601"}, "TensorRT is 8.6.1 here"),
    "a GPU that is not there": ({"FAKE_SM": ""}, "finds no GPU"),
    "a failed build": ({"FAKE_FAILURE": "no implementation"}, "no implementation"),
    "an unused input": (
        {"FAKE_LOG": "[11/22/2026-10:00:00] [W] [TRT] Unused Input: mask\n"},
        "not as the graph says",
    ),
    "a builder that isn't known": ({"VLMEDGE_BUILDER": "make"}, "needed trtexec or python"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_stops_at(case, bundle, device):
    environment, message = REFUSALS[case]
    written = emit(bundle)
    device.unpack(written.archive)
    done = device.run(written.script.name, **environment)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert message in done.stderr
    engines = device.home / bundle[0].name / "engines"
    left = [path for path in engines.glob("*") if path.is_dir()] if engines.is_dir() else []
    assert not left, "half a set is left"


@pytest.mark.parametrize(
    "line",
    [
        "[11/22/2026-10:00:00] [W] [TRT] Make sure input position_ids has Int64 binding.\n",
        "[11/22/2026-10:00:00] [W] [TRT] CUDA lazy loading is not enabled.\n",
        "[11/22/2026-10:00:00] [I] [TRT] Unused Input: said by someone at another level\n",
    ],
)
def test_a_harmless_line_does_not_stop_it(line, bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    assert device.run(written.script.name, FAKE_LOG=line).returncode == 0


SAID = (
    "Unused Input: mask",
    "Input tensor attention_mask is unused in the network",
    "Missing scale and zero-point for tensor x, expect fall back to non-int8",
    "Calibrator is not being used",
    "Falling back to a slower kernel",
    "Converting weights between types: 4 weights were cut",
    "Make sure input position_ids has Int64 binding.",
    "Your ONNX model has INT64 weights. Attempting to cast down to INT32.",
    "No importer registered for op: MatMulNBits. Attempting to import as plugin.",
    "Flag kTF32 is ignored",
    "CUDA lazy loading is not enabled. Enabling it can save memory: falls back",
    "Using an engine plan file across different models of devices is not recommended",
    "The timing cache is ignored: flag",
)


def test_grep_reads_the_patterns_of_warnings_as_python_does(bundle, tmp_path):
    """What `vlmedge build` refuses, the script refuses, and nothing else."""
    script = emit(bundle).script.read_text()
    functions = script[script.index("list_refusals() {") : script.index("print_record() {")]
    filtering = "grep -Ei -f <(list_refusals) | grep -Eiv -f <(list_harmless) || true"
    assert filtering.removesuffix(" || true").split(" | ")[0] in script
    done = subprocess.run(
        ["bash", "-c", f"{functions}\n{filtering}"],
        input="\n".join(SAID),
        capture_output=True,
        text=True,
        check=True,
    )
    refused = [text for text in SAID if find_refusals([Message("warning", text)])]
    assert done.stdout.splitlines() == refused
    assert 0 < len(refused) < len(SAID)


def test_a_damaged_file_is_found_before_anything_is_built(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    data = device.home / bundle[0].name / "decoder.onnx.data"
    content = bytearray(data.read_bytes())
    content[7] ^= 1
    data.write_bytes(content)
    done = device.run(written.script.name)
    assert done.returncode == 1
    assert "decoder.onnx.data: FAILED" in done.stderr
    assert not device.record.exists()


def test_a_full_disk_is_found_before_anything_is_built(bundle, device):
    written = emit(bundle)
    text = written.script.read_text()
    device.unpack(written.archive)
    (device.home / written.script.name).write_text(
        re.sub(r"^disk_kib=\d+$", f"disk_kib={1 << 50}", text, flags=re.MULTILINE)
    )
    done = device.run(written.script.name)
    assert done.returncode == 1
    assert "MiB are free" in done.stderr
    assert not device.record.exists()


def test_what_the_gpu_can_not_compute_is_told_before_anything_is_built(bundle, device):
    folder, manifest = bundle
    entry = CoverageEntry("layer", "linear", "decoder", "float8_e4m3fn", "recipe")
    manifest = dataclasses.replace(manifest, coverage=(entry,))
    written = emit((folder, manifest))
    device.unpack(written.archive)
    done = device.run(written.script.name)
    assert done.returncode == 1
    assert "8.7" in done.stderr
    assert "--recipe orin" in done.stderr
    assert not device.record.exists()
    assert device.run(written.script.name, FAKE_SM="11.0", FAKE_GPU="Thor").returncode == 0


def test_a_newer_trtexec_is_noted_and_used(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    done = device.run(written.script.name, FAKE_VERSION="120100")
    assert done.returncode == 0
    assert "note: TensorRT 12.1.0 is newer" in done.stderr


@pytest.mark.parametrize(
    ("banner", "module", "wanted"),
    [
        ("100300", "", "10.3.0"),  # 10.3's banner has no build number
        ("101303] [b9", "", "10.13.3.9"),
        ("100300", "10.3.0", "10.3.0"),
        ("101601] [b11", "10.16.1.11", "10.16.1.11"),
        ("101601] [b11", "10.16.1", "10.16.1"),  # as the runtime will see it
        ("101601] [b11", "11.1.0.106", "10.16.1.11"),
    ],
)
def test_the_version_is_the_one_that_the_runtime_compares(banner, module, wanted, bundle, device):
    python = device.home / "tools" / "python3"
    python.write_text(f"#!/bin/sh\n[ -n '{module}' ] && echo '{module}'\n")
    python.chmod(0o755)
    device.unpack(emit(bundle).archive)
    done = device.run("build orin.sh", FAKE_VERSION=banner)
    assert done.returncode == 0, done.stderr
    folder = device.home / bundle[0].name / "engines" / f"sm87-tensorrt{wanted}-float32"
    assert read_engine_set(folder).version == wanted
    assert ("warning: trtexec is of TensorRT" in done.stderr) == (module[:2] == "11")


def test_a_gpus_name_can_not_end_the_record(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    done = device.run(written.script.name, FAKE_GPU='Orin"}, & $(id) \\')
    assert done.returncode == 0, done.stderr
    (folder,) = (device.home / bundle[0].name / "engines").glob("sm87*-float32")
    assert read_engine_set(folder).gpu.name == "Orin  (id) "


def test_an_interrupted_build_leaves_no_folder(bundle, device):
    written = emit(bundle)
    device.unpack(written.archive)
    slow = TRTEXEC.replace("printf 'timings'", "kill -TERM $PPID; sleep 5\nprintf 'timings'")
    (device.home / "tools/trtexec").write_text(slow)
    done = device.run(written.script.name)
    assert done.returncode == 143
    engines = device.home / bundle[0].name / "engines"
    assert not [path for path in engines.iterdir() if path.is_dir()]


def test_the_tar_holds_the_bundle_and_the_script_and_no_engines(bundle):
    folder, manifest = bundle
    (folder / "engines" / "sm86").mkdir(parents=True)
    (folder / "engines" / "sm86" / "engines.json").write_text("{}")
    written = emit(bundle)
    with tarfile.open(written.archive) as tar:
        members = {member.name: member for member in tar}
        wanted = {f"{folder.name}/{name}" for name in ("manifest.json", *manifest.files)}
        assert set(members) == {written.script.name, *wanted}
        assert members[written.script.name].mode & 0o111
        assert {member.mtime for member in members.values()} == {0}
        data = tar.extractfile(f"{folder.name}/decoder.onnx.data")
        assert data is not None
        assert data.read() == (folder / "decoder.onnx.data").read_bytes()


def test_the_same_bundle_gives_the_same_script_and_tar(bundle):
    first, second = emit(bundle), None
    content = [path.read_bytes() for path in (first.script, first.archive)]
    second = emit(bundle)
    assert content == [path.read_bytes() for path in (second.script, second.archive)]


def test_the_record_in_the_script_is_json_but_for_what_the_device_fills_in(bundle):
    text = emit(bundle).script.read_text()
    record = text.partition("print_record() {")[2].partition("\n")[2].partition("\n")[2]
    record = record.partition("\nEND_OF_TEXT\n")[0]
    places = set(re.findall(r"@[\w:.]+@", record))
    assert places == {
        *(f"@{kind}:{graph}@" for kind in ("bytes", "sha256") for graph in GRAPHS),
        *("@version@", "@gpu@", "@sm@"),
    }
    assert json.loads(re.sub(r"@bytes:\w+@", "1", record))["schema_version"] == 1


def test_settings_that_a_script_can_not_follow_are_refused(bundle):
    with pytest.raises(ValueError, match="compute_capability"):
        emit(bundle, BuildSettings(compute_capability="8.6"))


def test_a_bundle_for_tensorrt_rtx_is_refused(bundle):
    folder, manifest = bundle
    target = TargetRecord("tensorrt-rtx", "RTX 1.5", "float32", "append", None)
    with pytest.raises(ValueError, match="vlmedge build"):
        emit((folder, dataclasses.replace(manifest, target=target)))


def test_a_bundle_for_onnxruntime_is_refused(bundle):
    folder, manifest = bundle
    with pytest.raises(ValueError, match="--target"):
        emit((folder, dataclasses.replace(manifest, target=None, flavor="onnxruntime")))


def test_a_script_named_as_its_tar_is_refused(bundle):
    with pytest.raises(ValueError, match="script's name"):
        emit(bundle, name="build.tar")


def test_a_wrong_option_of_the_script_exits_with_2(bundle, device):
    device.unpack(emit(bundle).archive)
    for arguments in (["--help"], ["one", "two"]):
        done = device.run("build orin.sh", *arguments)
        assert done.returncode == 2
        assert "usage: " in done.stderr


def test_a_decoder_in_parts_is_carried_and_built_in_parts(bundle, device, monkeypatch):
    """Cutting is another's work: here a part is the whole decoder under another name."""
    from vlmedge.export.engines import split

    spec = bundle[1].graphs["decoder"]
    monkeypatch.setattr(
        split,
        "split_decoder",
        lambda model, spec, num_parts, separate_lm_head: [
            split.Part(f"decoder.{i}", model, spec.inputs, spec.outputs) for i in range(num_parts)
        ],
    )
    written = emit(bundle, dataclasses.replace(SETTINGS, split=2))
    device.unpack(written.archive)
    carried = device.home / "build orin.parts"
    assert sorted(path.name for path in carried.iterdir()) == ["decoder.0.onnx", "decoder.1.onnx"]
    done = device.run(written.script.name)
    assert done.returncode == 0, done.stderr
    (folder,) = (device.home / bundle[0].name / "engines").glob("sm87*-float32")
    chain = read_engine_set(folder).chains["decoder"]
    assert [engine.name for engine in chain] == ["decoder.0", "decoder.1"]
    assert chain[0].inputs == spec.inputs
    assert not list(carried.glob("*.data")), "the links to the weights are left"
    (carried / "decoder.1.onnx").write_bytes(b"damaged")
    done = device.run(written.script.name)
    assert done.returncode == 1
    assert "unpack the tar again" in done.stderr


def test_the_weights_lie_beside_the_parts_while_they_are_built(bundle, device, monkeypatch):
    from vlmedge.export.engines import split

    monkeypatch.setattr(
        split,
        "split_decoder",
        lambda model, spec, num_parts, separate_lm_head: [
            split.Part("decoder", model, spec.inputs, spec.outputs),
        ],
    )
    device.unpack(emit(bundle, dataclasses.replace(SETTINGS, separate_lm_head=True)).archive)
    spying = TRTEXEC.replace("printf 'timings'", 'ls "$(dirname "$graph")"; printf \'timings\'')
    (device.home / "tools/trtexec").write_text(spying)
    assert device.run("build orin.sh").returncode == 0
    (folder,) = (device.home / bundle[0].name / "engines").glob("sm87*-float32")
    assert "decoder.onnx.data" in (folder / "decoder.log").read_text().split()


def test_without_onnx_it_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "vlmedge.export.engines.split", None)
    with pytest.raises(BackendError, match=r"vlmedge\[export\]"):
        emit(bundle)


SHIM = """
import ctypes
from tensorrt_rtx import *
from tensorrt_rtx import Builder as _Builder, ComputeCapability, IBuilderConfig

__version__ = "10.3.0"
# It measures nothing, and would look for a GPU
IBuilderConfig.set_timing_cache = lambda self, cache, ignore_mismatch: True
IBuilderConfig.get_timing_cache = lambda self: None


class Builder(_Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(ComputeCapability.SM86, 0)
        return config


class FakeCuda:
    def __init__(self, name):
        pass

    def __getattr__(self, call):
        def answer(*arguments):
            if call == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            if call == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            return 0
        return answer


ctypes.CDLL = FakeCuda
"""


def test_without_trtexec_the_script_builds_real_engines_by_itself(bundle, device):
    """TensorRT-RTX stands for TensorRT; the GPU is made up, the engines are not."""
    pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
    tools = device.home / "tools"
    (tools / "trtexec").unlink()
    (tools / "tensorrt.py").write_text(SHIM)
    (tools / "python3").write_text(f'#!/bin/sh\nPYTHONPATH="{tools}" exec {sys.executable} "$@"\n')
    (tools / "python3").chmod(0o755)
    small = dataclasses.replace(SETTINGS, max_pixels=bundle[1].pixels.min_pixels)
    written = emit(bundle, small)
    device.unpack(written.archive)
    done = device.run(written.script.name)
    assert done.returncode == 0, done.stderr
    engines = read_engine_set(device.home / bundle[0].name / "engines/sm87-tensorrt10.3.0-float32")
    for graph in GRAPHS:
        (engine,) = engines.chains[graph]
        assert engine.bytes > 5000


def test_the_script_writes_the_record_that_vlmedge_build_writes(bundle, device):
    """But for what differs: the builder, its version, the GPU, the engines' own bytes."""
    pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
    from vlmedge.export.engines.build import build_engines

    settings = BuildSettings(max_pixels=bundle[1].pixels.min_pixels, context=64)
    device.unpack(emit(bundle, settings).archive)
    assert device.run("build orin.sh").returncode == 0
    folder = device.home / bundle[0].name / "engines/sm87-tensorrt10.3.0-float32"
    ours = read_engine_set(folder)
    theirs = build_engines(
        bundle[0], dataclasses.replace(settings, compute_capability="8.6"), "tensorrt_rtx"
    ).engine_set
    for field in ("schema_version", "created_by", "dtype", "graph_sha256", "weights_sha256"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert {**ours.settings, "compute_capability": "8.6"} == theirs.settings
    assert list(ours.chains) == list(theirs.chains)
    for graph, chain in ours.chains.items():
        for mine, other in zip(chain, theirs.chains[graph], strict=True):
            assert mine == dataclasses.replace(other, bytes=mine.bytes, sha256=mine.sha256)
