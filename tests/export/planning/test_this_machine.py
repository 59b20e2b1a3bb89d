"""The machine at hand, by what its files and its driver would say."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.planning import this_machine
from vlmedge.export.planning.devices import DEVICES
from vlmedge.export.planning.this_machine import Found, find_this, recognize

MEMINFO = "MemTotal:        7620000 kB\nMemFree:          100 kB\nMemAvailable:    6100000 kB\n"
H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 81000\n"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "orin-nano-8gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "orin-nx-16gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "thor"),
    ],
)
def test_a_board_has_its_rates_and_the_memory_that_is_free_now(model, name):
    device = recognize(Found(model, MEMINFO, ""))
    assert device.name == "this"
    assert (device.memory_bytes, device.free_bytes) == (7620000 << 10, 6100000 << 10)
    assert (device.half, device.bandwidth) == (DEVICES[name].half, DEVICES[name].bandwidth)
    assert device.kind == DEVICES[name].kind
    assert "nothing was measured" in device.sources["memory"]


@pytest.mark.parametrize(("gib", "name"), [(30, "agx-orin-32gb"), (61, "agx-orin-64gb")])
def test_the_two_agx_orins_are_told_apart_by_their_memory(gib, name):
    meminfo = f"MemTotal: {gib << 20} kB\nMemAvailable: 1000 kB\n"
    device = recognize(Found("NVIDIA Jetson AGX Orin Developer Kit", meminfo))
    assert device.half == DEVICES[name].half


def test_an_unknown_gpu_has_its_memory_and_no_times():
    device = recognize(Found("", MEMINFO, H100))
    assert (device.memory_bytes, device.free_bytes) == (81559 << 20, 81000 << 20)
    assert device.sm == "9.0"
    assert device.has_gpu
    assert not device.is_timed
    assert not device.is_unified


def test_without_a_gpu_there_is_a_memory_plan_only():
    device = recognize(Found("", MEMINFO, ""))
    assert not device.has_gpu
    assert not device.is_timed
    assert device.free_bytes == 6100000 << 10


def test_no_meminfo_asks_for_a_board():
    with pytest.raises(ValueError, match="name a board with --device"):
        recognize(Found())


@given(st.text(max_size=80))
def test_no_answer_of_a_driver_crashes_it(line):
    assert recognize(Found("", MEMINFO, line)).name == "this"


def test_this_machine_is_read():
    device = find_this()
    assert 0 < device.free_bytes <= device.memory_bytes


def test_a_driver_that_hangs_or_is_missing_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(this_machine, "_QUERY", (str(tmp_path / "none"),))
    assert this_machine._ask_driver() == ""
    monkeypatch.setattr(this_machine, "DRIVER_TIMEOUT_S", 0.1)
    sleeps = (sys.executable, "-c", "import time; time.sleep(9)")
    monkeypatch.setattr(this_machine, "_QUERY", sleeps)
    assert this_machine._ask_driver() == ""
