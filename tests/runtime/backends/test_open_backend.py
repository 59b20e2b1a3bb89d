"""Which backend runs a bundle."""

import dataclasses

import pytest

from vlmedge.runtime.backends.open_backend import open_backend
from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.backends.trt import backend as engines
from vlmedge.runtime.bundle.manifest import TargetRecord
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BackendError


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture
def manifest(bundle):
    return read_manifest(bundle)


@pytest.fixture
def target_manifest(manifest):
    target = TargetRecord("jetpack-7.2", "10.16", "float16", "in_place", 256)
    return dataclasses.replace(manifest, flavor="tensorrt", target=target)


@pytest.fixture
def opened_engines(monkeypatch):
    """Engines are "opened" as a word."""
    monkeypatch.setattr(engines, "open_engines", lambda *_, **__: "engines")


def open_with(bundle, manifest, providers):
    return open_backend(bundle, manifest, providers=providers, num_threads=1, residency="all")


def test_graphs_for_onnx_runtime_run_there(bundle, manifest, opened_engines):
    assert isinstance(open_with(bundle, manifest, None), OrtBackend)
    assert isinstance(open_with(bundle, manifest, "cpu"), OrtBackend)


def test_graphs_for_tensorrt_run_as_engines_unless_a_provider_is_named(
    bundle, target_manifest, opened_engines
):
    assert open_with(bundle, target_manifest, None) == "engines"
    assert open_with(bundle, target_manifest, "tensorrt") == "engines"
    assert open_with(bundle, target_manifest, ["TensorRT"]) == "engines"
    assert isinstance(open_with(bundle, target_manifest, ["cpu"]), OrtBackend)


def test_engines_of_a_bundle_without_a_target_are_refused_with_the_commands(bundle, manifest):
    with pytest.raises(BackendError, match=r"vlmedge export .* --target .* vlmedge build"):
        open_with(bundle, manifest, "tensorrt")


def test_engines_have_no_second_choice(bundle, target_manifest):
    with pytest.raises(BackendError, match="alone"):
        open_with(bundle, target_manifest, ["tensorrt", "cpu"])
