"""Tiny bundles for TensorRT, and a TensorRT of any version that is a fake."""

import importlib.util
import sys
from pathlib import Path

import pytest

from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions

HERE = Path(__file__).parent
CONTEXT = 128  # tokens, where the graph fixes them


def load_neighbour(name):
    """A file beside this one as a module."""
    full = f"engine_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def make_fake():
    """make_fake(version, rtx=False): a module with that version's names."""
    return load_neighbour("fake_tensorrt").make_module


@pytest.fixture
def install_fake(make_fake, monkeypatch):
    """install_fake(version, rtx=False): the same, found by import; the other one is not."""

    def install(version, *, rtx=False):
        module = make_fake(version, rtx=rtx)
        monkeypatch.setitem(sys.modules, "tensorrt", None if rtx else module)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", module if rtx else None)
        return module

    return install


@pytest.fixture(scope="session")
def lower(make_bundle, tmp_path_factory):
    """lower(target, dtype="bf16", source=None, size="tiny"): each bundle is made once a session."""
    made = {}

    def make(target, dtype="bf16", source=None, size="tiny"):
        key = (target, dtype, source, size)
        if key not in made:
            context = None if target in ("jetpack-6.2", "jetpack-7.0") else CONTEXT
            folder = tmp_path_factory.mktemp("lowered") / target
            options = LoweringOptions(target, dtype, context)
            export_for_target(source or make_bundle(size).checkpoint, folder, options)
            made[key] = folder
        return made[key]

    return make
