"""Engines for a GPU that TensorRT-RTX does not list, built without one."""

import json

import pytest
from gpu_check.rtx_target import ANY, CURRENT, OWN, ChosenTarget, chosen_target, list_targets

from vlmedge.export.engines.build import build_engines
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.runtime.backends.trt.engine_set import Gpu
from vlmedge.runtime.errors import BackendError

KNOWN = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def test_a_gpu_that_is_listed_is_tried_as_itself_first():
    assert list_targets("8.9", KNOWN)[0] == OWN


def test_another_is_tried_without_a_target_then_as_older_ones_the_newest_first():
    assert list_targets("9.0", KNOWN) == [ANY, CURRENT, "SM89", "SM86", "SM80", "SM75"]


def test_no_target_is_newer_than_the_gpu():
    assert not {"SM120", "SM121"} & set(list_targets("11.0", KNOWN))


@pytest.fixture(scope="module")
def bundle(make_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lowered") / "bundle"
    checkpoint = make_bundle("tiny").checkpoint
    export_for_target(checkpoint, folder, LoweringOptions("tensorrt-rtx", "fp16", 512))
    return folder


@pytest.fixture
def hopper(monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    class Driver:
        gpu = Gpu("NVIDIA H100", "9.0")

    monkeypatch.setattr("vlmedge.runtime.backends.trt.cuda_driver.CudaDriver", Driver)


def test_the_builder_itself_refuses_such_a_gpu(hopper, bundle):
    with pytest.raises(BackendError, match=r"not for 9\.0"):
        build_engines(bundle, BuildSettings(max_pixels=112**2), "tensorrt_rtx")


@pytest.mark.parametrize("target", [ANY, "SM86"])
def test_engines_of_a_chosen_target_are_recorded_as_that_gpus(hopper, bundle, target):
    with chosen_target(target):
        made = build_engines(bundle, BuildSettings(max_pixels=112**2), "tensorrt_rtx")
    assert made.engine_set.gpu == Gpu("NVIDIA H100", "9.0")
    record = json.loads((made.folder / "engines.json").read_text(encoding="utf-8"))
    assert record["gpu"]["sm"] == "9.0"
    with pytest.raises(BackendError):  # the substitute is gone
        build_engines(bundle, BuildSettings(max_pixels=112**2), "tensorrt_rtx")


def test_tensorrt_is_told_the_target_or_nothing():
    asked = []

    class Config:
        def clear_flag(self, flag): ...

        def set_compute_capability(self, target, index):
            asked.append(target)

    class Module:
        __version__ = "1.7"

        class ILogger:
            class Severity: ...

        class BuilderFlag:
            TF32 = 0

        class ComputeCapability:
            SM80 = "SM80"
            CURRENT = "CURRENT"

    from dataclasses import dataclass
    from types import SimpleNamespace

    @dataclass
    class Request:
        compute_capability: str | None = "9.0"
        profiles: tuple = ()
        workspace_bytes: None = None
        optimization_level: None = None
        weight_streaming: bool = False

    builder = SimpleNamespace(create_builder_config=Config)
    for target in ("SM80", CURRENT):
        ChosenTarget(target, Module)._configure(builder, Request())
    assert asked == ["SM80", "CURRENT"]
    ChosenTarget(ANY, Module)._configure(builder, Request(compute_capability=None))
    assert len(asked) == 2
