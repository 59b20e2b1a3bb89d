"""Every recipe for every target becomes engines: built by TensorRT-RTX, for GPUs that are not here.

Compute capability 8.6 stands for an Orin's 8.7 and 12.0 for a Thor's 11.0: the nearest that
TensorRT-RTX builds for. That an engine is built says that TensorRT takes the graph, its types and
profiles; it says nothing of numbers or speed, and TensorRT-RTX is not the TensorRT of a JetPack.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmedge.export.engines import build as build_module
from vlmedge.export.engines.build import build_engines
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.lowering.targets import TARGETS
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe
from vlmedge.runtime.backends.trt.engine_set import list_engines, read_engine_set
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BackendError

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")

SAMPLE = Path(__file__).parents[3] / "samples" / "reader"
RECIPES = ("float", "accurate", "cpu", "orin", "smallest", "thor")
STANDS_FOR_ORIN, STANDS_FOR_THOR = "8.6", "12.0"
# One vision profile: more are built once, below. A cache of 128 tokens is the least that
# TensorRT-RTX 1.7.1 builds for a single sequence with TensorScatter.
SETTINGS = BuildSettings(max_pixels=16 * 784, context=128)


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Two pictures with questions, to calibrate with."""
    folder = tmp_path_factory.mktemp("questions")
    generator = np.random.default_rng(0)
    lines = []
    for name, (width, height) in {"a": (90, 60), "b": (56, 84)}.items():
        levels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{name}.png")
        line = {"id": name, "image": f"{name}.png", "question": "What is it?", "answer": "noise"}
        lines.append(json.dumps(line) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    return open_data(str(folder))


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The sample's float bundle."""
    folder = tmp_path_factory.mktemp("sample") / "float"
    export_checkpoint(SAMPLE, folder)
    return folder


@pytest.fixture(scope="session")
def quantize(make_bundle, sample, questions, tmp_path_factory):
    """quantize(recipe, model): a bundle by a preset, or the float one."""
    made = {}

    def make(name, model="tiny"):
        source = sample if model == "sample" else make_bundle("tiny").bundle
        if name == "float":
            return source
        if (name, model) not in made:
            recipe = open_recipe(name)
            folder = tmp_path_factory.mktemp("quantized") / name
            data = questions if recipe.needs_data else None
            quantize_bundle(source, folder, recipe, data, num_threads=1)
            made[name, model] = folder
        return made[name, model]

    return make


@pytest.fixture(scope="session")
def build_once():
    """build_once(bundle, sm): targets with the same graphs and weights are built once."""
    made = {}

    def make(bundle, sm):
        files = {
            name: record.sha256
            for name, record in read_manifest(bundle).files.items()
            if name.startswith(("vision.", "decoder."))
        }
        key = (json.dumps(files, sort_keys=True), sm)
        if key not in made:
            settings = dataclasses.replace(SETTINGS, compute_capability=sm)
            made[key] = build_engines(bundle, settings, "tensorrt_rtx")
        return made[key]

    return make


@pytest.mark.parametrize("sm", [STANDS_FOR_ORIN, STANDS_FOR_THOR])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", ["tiny", "sample"])
def test_a_recipe_for_a_target_is_built(build_once, lower, quantize, model, recipe, target, sm):
    source = quantize(recipe, model)
    if recipe == "thor" and target == "jetpack-6.2":  # which only comes with Orins
        with pytest.raises(ValueError, match="quantize with --recipe orin"):
            lower(target, "bf16", source)
        return
    bundle = lower(target, "bf16", source)
    if recipe == "thor" and sm == STANDS_FOR_ORIN:
        with pytest.raises(BackendError, match=r"layers are float8_e4m3fn .*--recipe orin"):
            build_once(bundle, sm)
        return
    made = build_once(bundle, sm)
    assert read_engine_set(made.folder) == made.engine_set
    engines = list_engines(made.engine_set)
    assert [engine.name for engine in engines] == ["vision", "decoder"]
    assert all(engine.bytes > 10_000 for engine in engines)
    assert made.warnings == {"vision": (), "decoder": ()}


def test_fp8_is_refused_for_an_orin_by_the_builder_too(lower, quantize, monkeypatch):
    """Our table of precisions says what TensorRT says, had it been asked."""
    bundle = lower("jetpack-7.2", "bf16", quantize("thor"))
    monkeypatch.setattr(build_module, "check_precisions", lambda *_: None)
    settings = dataclasses.replace(SETTINGS, compute_capability=STANDS_FOR_ORIN)
    with pytest.raises(BackendError, match=r"HW-specific datatypes: fp8_e4m3"):
        build_engines(bundle, settings, "tensorrt_rtx")


@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.2"])
def test_every_option_of_a_build_is_taken_at_once(lower, target):
    """Several profiles, sequences and pictures, clips, parts, weight streaming; float16."""
    settings = BuildSettings(
        max_pixels=64 * 784,
        max_images=3,
        max_batch=2,
        context=128,
        prefill_tokens=64,
        video=True,
        split=2,
        separate_lm_head=True,
        workspace_mib=512,
        optimization_level=2,
        weight_streaming=True,
        compute_capability=STANDS_FOR_ORIN,
    )
    record = build_engines(lower(target, "fp16"), settings, "tensorrt_rtx").engine_set
    names = [engine.name for engine in list_engines(record)]
    assert names == ["vision", "vision_video", "decoder.0", "decoder.1", "lm_head"]
    assert len(record.chains["vision"][0].profiles) == 2


def test_seven_heads_to_a_key_head_and_an_lm_head_of_its_own_are_built(lower):
    settings = dataclasses.replace(SETTINGS, compute_capability=STANDS_FOR_THOR)
    made = build_engines(lower("jetpack-7.2", size="tiny-7b"), settings, "tensorrt_rtx")
    assert len(list_engines(made.engine_set)) == 2


def test_float32_is_built_where_attention_is_written_out(lower):
    settings = dataclasses.replace(SETTINGS, compute_capability=STANDS_FOR_THOR)
    made = build_engines(lower("jetpack-6.2", "fp32"), settings, "tensorrt_rtx")
    assert made.engine_set.dtype == "float32"


def test_float32_is_refused_with_a_fused_attention_by_the_builder_too(lower, monkeypatch):
    bundle = lower("jetpack-7.2", "fp32")
    settings = dataclasses.replace(SETTINGS, compute_capability=STANDS_FOR_THOR)
    with pytest.raises(BackendError, match="export it with --dtype bf16"):
        build_engines(bundle, settings, "tensorrt_rtx")
    monkeypatch.setattr(build_module, "check_dtype", lambda _: None)
    with pytest.raises(BackendError, match="not supported by a dedicated kernel"):
        build_engines(bundle, settings, "tensorrt_rtx")


def test_a_board_builds_with_none_of_the_exporters_packages(lower, tmp_path):
    """In a Python that can't import them: what runs on a device is this and numpy."""
    bundle = shutil.copytree(lower("jetpack-6.2"), tmp_path / "bundle")
    blocked = ("onnx", "onnx_ir", "ml_dtypes", "torch", "safetensors", "onnxruntime", "tomllib")
    code = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
from vlmedge.runtime.cli.main import main
sys.exit(main(["build", *sys.argv[1:]]))
"""
    options = ["--compute-capability", "8.6", "--max-pixels", "12544", "--context", "128"]
    done = subprocess.run(
        [sys.executable, "-c", code, bundle, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "decoder.engine" in done.stdout
