"""What a machine has, and what is said of it when something is missing."""

import re

import pytest
from gpu_check import machine


def test_a_dry_run_is_described_without_a_gpu(make_config):
    found = machine.describe(make_config())
    assert found["gpu"] is None
    assert re.match(r"\d+\.\d+", found["versions"]["numpy"])
    assert found["free_disk_gib"] > 0
    assert "CPUExecutionProvider" in found["onnxruntime_providers"]


def test_a_package_that_nothing_can_do_without_is_named(make_config, monkeypatch):
    monkeypatch.setitem(machine.NEEDED, "no_such_module", "dreams")
    with pytest.raises(ValueError, match=r"no_such_module \(for dreams: ModuleNotFoundError"):
        machine.describe(make_config())


def test_a_package_of_the_pack_that_is_missing_is_only_told(make_config, monkeypatch):
    monkeypatch.setattr(machine, "PACKED", ("no_such_module",))
    assert "no_such_module" in machine.describe(make_config())["missing"]


def test_without_a_gpu_a_dry_run_is_offered(make_config, monkeypatch):
    from vlmedge.runtime.errors import BackendError

    def refuse():
        raise BackendError("no GPU can be used")

    monkeypatch.setattr("vlmedge.runtime.backends.trt.cuda_driver.CudaDriver", refuse)
    with pytest.raises(ValueError, match="no GPU can be used; without a GPU ask for --dry-run"):
        machine.describe(make_config(dry_run=False))
