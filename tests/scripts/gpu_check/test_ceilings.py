"""Bandwidth and rates, as far as they go without a GPU."""

import time

import pytest
from gpu_check import ceilings


class Driver:
    """Copies at a speed of its own."""

    bytes_per_s = 4e9

    def __init__(self):
        self.blocks, self.freed = [], []

    def measure_memory(self):
        return 1 << 34, 1 << 34

    def malloc(self, num_bytes):
        self.blocks.append(num_bytes)
        return len(self.blocks)

    def free(self, address):
        self.freed.append(address)

    def make_stream(self):
        return 1

    def destroy_stream(self, stream): ...

    def synchronize(self, stream): ...

    def copy_rows(self, target, target_pitch, source, source_pitch, row_bytes, num_rows, stream):
        assert target_pitch == source_pitch == row_bytes
        time.sleep(2 * row_bytes * num_rows / self.bytes_per_s)


def test_read_and_written_bytes_both_count(monkeypatch):
    driver = Driver()
    monkeypatch.setattr("vlmedge.runtime.backends.trt.cuda_driver.CudaDriver", lambda: driver)
    monkeypatch.setattr(ceilings, "COPY_BYTES", 40 << 20)
    # A loaded machine sleeps longer, never shorter.
    assert 0.5 * driver.bytes_per_s < ceilings.measure_driver_copy() < 1.01 * driver.bytes_per_s
    assert driver.blocks == [40 << 20] * 2
    assert sorted(driver.freed) == [1, 2]


def test_memory_is_given_back_when_a_copy_fails(monkeypatch):
    driver = Driver()
    driver.copy_rows = lambda *args: (_ for _ in ()).throw(RuntimeError("broken"))
    monkeypatch.setattr("vlmedge.runtime.backends.trt.cuda_driver.CudaDriver", lambda: driver)
    with pytest.raises(RuntimeError, match="broken"):
        ceilings.measure_driver_copy()
    assert sorted(driver.freed) == [1, 2]


def test_without_a_gpu_in_torch_the_copy_is_measured_all_the_same(make_config, monkeypatch):
    monkeypatch.setattr("vlmedge.runtime.backends.trt.cuda_driver.CudaDriver", Driver)
    monkeypatch.setattr(ceilings, "COPY_BYTES", 1 << 20)
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU")
    figures = ceilings.measure(make_config())
    assert figures["bytes_per_s"]["driver"] > 0
    assert figures["errors"] == {"torch": "it sees no GPU"}
