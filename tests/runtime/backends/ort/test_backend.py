import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from vlmedge.runtime import BundleError, GenerationOptions, Model
from vlmedge.runtime.backends.ort.session import choose_providers
from vlmedge.runtime.bundle.manifest import MANIFEST_NAME
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.errors import BackendError

PICTURE = np.zeros((56, 56, 3), np.uint8)
OPTIONS = GenerationOptions(max_new_tokens=2)


@pytest.fixture
def bundle(tiny, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(tiny.bundle, tmp_path / "bundle")


def rewrite(bundle, **changes):
    """Change the manifest and bring its records up to what is on disk."""
    raw = json.loads((bundle / MANIFEST_NAME).read_text()) | changes
    for name, record in raw["files"].items():
        record["bytes"] = (bundle / name).stat().st_size
    (bundle / MANIFEST_NAME).write_text(seal_manifest(raw))


def ask(bundle, **media):
    with Model.load(bundle) as model:
        model.answer("?", options=OPTIONS, **media)


def test_a_cut_file_is_found_when_the_bundle_is_opened(bundle):
    for path in sorted(bundle.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(BundleError):
            Model.load(bundle)
        path.write_bytes(data)
    ask(bundle)


@pytest.mark.parametrize("name", ["decoder.onnx", "vision.onnx"])
@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"not a graph" * 99])
def test_a_file_that_is_no_graph_is_a_bundle_error(bundle, name, content):
    (bundle / name).write_bytes(content)
    rewrite(bundle)
    with pytest.raises(BundleError, match=name):
        ask(bundle, images=[PICTURE])


@pytest.mark.parametrize("name", ["decoder.onnx.data", "vision.onnx.data"])
def test_weights_that_end_too_early_are_a_bundle_error(bundle, name):
    (bundle / name).write_bytes((bundle / name).read_bytes()[:5000])
    rewrite(bundle)
    with pytest.raises(BundleError, match="damaged"):
        ask(bundle, images=[PICTURE])


def test_a_graph_of_other_inputs_than_the_manifests_is_a_bundle_error(bundle):
    shutil.copy(bundle / "vision.onnx", bundle / "decoder.onnx")
    rewrite(bundle)
    with pytest.raises(BundleError, match="another bundle"):
        ask(bundle)


def test_a_graph_the_bundle_lacks_is_named_when_it_is_needed(bundle):
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    graphs = {k: v for k, v in manifest["graphs"].items() if k != "vision_video"}
    coverage = [entry for entry in manifest["coverage"] if entry["graph"] != "vision_video"]
    rewrite(bundle, graphs=graphs, coverage=coverage)
    ask(bundle, images=[PICTURE])
    with pytest.raises(BundleError, match="vision_video"):
        ask(bundle, videos=[[PICTURE]])


def test_another_checkpoints_tokenizer_is_a_bundle_error(bundle, tokenizer_file):
    shutil.copy(tokenizer_file, bundle / "tokenizer.json")
    rewrite(bundle)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Model.load(bundle)


@pytest.mark.parametrize("content", [b"{% if %}", b"\xff\xfe"])
def test_a_damaged_chat_template_is_a_bundle_error(bundle, content):
    name = json.loads((bundle / MANIFEST_NAME).read_text())["chat_template_file"]
    (bundle / name).write_bytes(content)
    rewrite(bundle)
    with pytest.raises(BundleError, match="template"):
        Model.load(bundle)


def test_a_graph_that_fails_while_it_runs_is_a_backend_error(tiny):
    with Model.load(tiny.bundle) as model:
        backend = model._engine._backend
        wrong = np.zeros((1, 3, 588), np.uint8), np.zeros((1, 4, 2), np.int64)
        with pytest.raises(BackendError, match="vision graph failed"):
            backend.encode_images("vision", *wrong)
        small = backend.make_cache(1, 4)
        call = backend.bind_decoder(small, 8)
        call.seqlens_k[:] = 7
        call.total_sequence_length[...] = 8
        with pytest.raises(BackendError, match="decoder graph failed"):
            call.run()


def test_a_cache_beyond_memory_is_a_backend_error(tiny):
    with Model.load(tiny.bundle) as model, pytest.raises(BackendError, match="no memory"):
        model._engine._backend.make_cache(2**20, 2**30)


def test_the_cpu_is_always_there_and_comes_last():
    assert choose_providers("cpu") == ("CPUExecutionProvider",)
    assert choose_providers(["CPUExecutionProvider"]) == ("CPUExecutionProvider",)
    assert choose_providers(None)[-1] == "CPUExecutionProvider"


def test_a_provider_that_is_not_installed_is_named(tiny):
    with pytest.raises(BackendError, match=r"NoSuchProvider.*CPUExecutionProvider"):
        Model.load(tiny.bundle, providers=["NoSuchProvider"])
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(BackendError, match="CUDAExecutionProvider"):
            Model.load(tiny.bundle, providers="cuda")


def test_cuda_is_taken_where_it_is(monkeypatch):
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    assert choose_providers(None) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert choose_providers("cuda") == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert choose_providers("cpu") == ("CPUExecutionProvider",)


def test_a_gpu_that_does_not_start_is_an_error_if_asked_for_and_shown_if_not(tiny):
    with Model.load(tiny.bundle) as model:
        backend = model._engine._backend
        backend._providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        backend._is_provider_asked = True
        spec = backend._manifest.graphs["vision"]
        options = ort.SessionOptions()
        session = ort.InferenceSession(str(tiny.bundle / spec.file), options)
        with pytest.raises(BackendError, match="could not be started"):
            backend._check("vision", spec, session)
        backend._is_provider_asked = False
        backend._check("vision", spec, session)
        assert model.providers == ("CPUExecutionProvider",)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_damaged_graph_is_not_taken_for_a_missing_gpu(bundle, capfd):
    (bundle / "decoder.onnx").write_bytes(b"not a graph")
    rewrite(bundle)
    with Model.load(bundle) as model:
        backend = model._engine._backend
        backend._providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        with pytest.raises(BundleError, match="damaged"):
            model.answer("?", options=OPTIONS)
    assert capfd.readouterr().out == ""


def test_threads_default_to_the_cores_of_this_process(tiny, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    with Model.load(tiny.bundle) as model:
        session = model._engine._backend.load("decoder")
        assert session.get_session_options().intra_op_num_threads == 3
    with Model.load(tiny.bundle, num_threads=2) as model:
        session = model._engine._backend.load("decoder")
        assert session.get_session_options().intra_op_num_threads == 2


def test_without_onnxruntime_the_extra_is_named(tiny):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from vlmedge.runtime import Model, VlmedgeError\n"
        "try: Model.load(sys.argv[1])\n"
        "except VlmedgeError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tiny.bundle], capture_output=True, text=True, check=True
    )
    assert "pip install 'vlmedge[cpu]'" in result.stdout


def test_half_precision_caches_are_made_as_the_manifest_says(tiny):
    with Model.load(tiny.bundle) as model:
        backend = model._engine._backend
        decoder = backend._manifest.graphs["decoder"]
        inputs = tuple(
            dataclasses.replace(spec, dtype="float16") if "past" in spec.name else spec
            for spec in decoder.inputs
        )
        graphs = backend._manifest.graphs | {"decoder": dataclasses.replace(decoder, inputs=inputs)}
        backend._manifest = dataclasses.replace(backend._manifest, graphs=graphs)
        backend._sessions["decoder"] = None  # no graph is run here
        cache = backend.make_cache(2, 64)
        assert {buffer.dtype for buffer in cache.buffers.values()} == {np.dtype(np.float16)}
