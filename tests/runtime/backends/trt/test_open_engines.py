"""From a folder to a backend: which driver, which TensorRT, which engines."""

import dataclasses

import numpy as np
import pytest

from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.backends.trt import cuda_driver, tensorrt_engine
from vlmedge.runtime.backends.trt.backend import TrtBackend, open_engines
from vlmedge.runtime.backends.trt.choose import ChosenSet
from vlmedge.runtime.backends.trt.engine_set import read_engine_set
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BackendError, BundleError


@pytest.fixture
def machine(monkeypatch, driver, fake_engine):
    """A machine with the fake GPU and TensorRT 10.3.0; returns what its loader was made with."""
    made = []

    def make_loader(builder, *, stream_weights):
        made.append((builder, stream_weights))
        return None

    monkeypatch.setattr(cuda_driver, "CudaDriver", lambda: driver)
    monkeypatch.setattr(tensorrt_engine, "find_builders", lambda: {"tensorrt": "10.3.0"})
    monkeypatch.setattr(tensorrt_engine, "TensorRt", make_loader)
    return made


@pytest.mark.parametrize("streams", [False, True])
def test_the_fitting_set_is_opened_and_nothing_is_loaded(make_twin, machine, streams):
    bundle = make_twin("jetpack-6.2", **({"weight_streaming": True} if streams else {}))
    backend = open_engines(bundle, read_manifest(bundle))
    assert backend.providers == ("TensorRT 10.3.0 on Fake, sm 8.7",)
    assert backend.load_s == 0
    assert machine == [("tensorrt", streams)]


def test_a_clip_has_the_tokens_that_it_has_without_engines(
    make_twin, machine, monkeypatch, driver, fake_engine
):
    """What one picture may take is the engines', what a clip may take is the bundle's."""
    bundle = make_twin("jetpack-6.2", video=True, max_pixels=16 * 784)
    loader = fake_engine.FakeLoader(driver, read_engine_set(bundle / "engines" / "fake"))
    monkeypatch.setattr(tensorrt_engine, "TensorRt", lambda *_, **__: loader)
    clip = [np.full((84, 84, 3), level, np.uint8) for level in range(20)]
    options = GenerationOptions(max_new_tokens=1)
    found = []
    for providers in ("tensorrt", "cpu"):
        with Model.load(bundle, providers=providers, num_threads=1) as model:
            answer = model.answer("What happens?", videos=[clip], options=options)
            found.append((answer.num_prompt_tokens, answer.num_image_tokens, answer.token_ids))
    assert found[0] == found[1]
    assert found[0][1] == 10 * 9


def test_no_engines_is_told_before_tensorrt_is_started(make_twin, machine, tmp_path):
    manifest = read_manifest(make_twin("jetpack-6.2"))
    with pytest.raises(BackendError, match="holds no engines"):
        open_engines(tmp_path, manifest)
    assert machine == []


def test_no_tensorrt_is_told(make_twin, machine, monkeypatch):
    monkeypatch.setattr(tensorrt_engine, "find_builders", dict)
    bundle = make_twin("jetpack-6.2")
    with pytest.raises(BackendError, match=r"TensorRT is not installed.*vlmedge\[tensorrt\]"):
        open_engines(bundle, read_manifest(bundle))


def test_what_does_not_open_says_what_runs_without_engines(make_twin, machine, monkeypatch):
    bundle = make_twin("jetpack-6.2")
    manifest = read_manifest(bundle)
    for builders in ({}, {"tensorrt": "10.7.0"}):
        monkeypatch.setattr(tensorrt_engine, "find_builders", lambda found=builders: found)
        with pytest.raises(BackendError) as error:
            open_engines(bundle, manifest)
        assert str(error.value).endswith(
            "; for checks without engines, graphs of fp32 or fp16 run in ONNX Runtime with "
            "--provider cpu"
        )
    with Model.load(bundle, providers="cpu", num_threads=1) as model:
        assert model.answer("Hi", options=GenerationOptions(max_new_tokens=1)).token_ids


def test_no_gpu_is_told_in_cudas_words(make_twin, machine, monkeypatch):
    def fail():
        raise BackendError("no GPU can be used: driver version is insufficient")

    monkeypatch.setattr(cuda_driver, "CudaDriver", fail)
    bundle = make_twin("jetpack-6.2")
    with pytest.raises(BackendError, match="driver version is insufficient"):
        open_engines(bundle, read_manifest(bundle))


def test_engines_of_a_bundle_of_another_flavor_are_refused(manifest, engine_set, driver, tmp_path):
    other = dataclasses.replace(manifest, flavor="onnxruntime", target=None)
    with pytest.raises(BundleError, match="flavor onnxruntime"):
        TrtBackend(other, ChosenSet(tmp_path, engine_set, ()), driver, None)
