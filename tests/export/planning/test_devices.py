"""The table of boards, against what NVIDIA's data sheets print."""

import pytest

from vlmedge.export.planning.devices import DEVICES, GIB, find_device

# Sparse INT8 TOPS of the GPU alone, without the DLAs, as data sheets and NVIDIA's posts print them
SPARSE_INT8 = {
    "orin-nano-8gb": 67,
    "orin-nano-8gb-15w": 40,
    "orin-nx-16gb": 60,
    "agx-orin-32gb": 108,
    "agx-orin-64gb": 170,
}
BANDWIDTH = {
    "orin-nano-8gb": 102,
    "orin-nano-8gb-15w": 68,
    "orin-nx-16gb": 102.4,
    "orin-nx-16gb-super": 102.4,
    "agx-orin-32gb": 204.8,
    "agx-orin-64gb": 204.8,
    "thor": 273,
}
GIGABYTES = {"nano": 8, "nx": 16, "agx-orin-32": 32, "agx-orin-64": 64, "thor": 128}


@pytest.mark.parametrize("name", SPARSE_INT8)
def test_rates_are_half_of_the_sparse_ones_in_the_data_sheet(name):
    assert DEVICES[name].int8 / 1e12 == pytest.approx(SPARSE_INT8[name] / 2, rel=0.04)
    assert DEVICES[name].half == DEVICES[name].int8 / 2


def test_thors_rates_are_a_quarter_and_half_of_its_dense_fp4():
    thor = DEVICES["thor"]
    assert thor.half / 1e12 == pytest.approx(1035 / 4, rel=0.01)
    assert thor.fp8 / 1e12 == pytest.approx(1035 / 2, rel=0.01)


@pytest.mark.parametrize("name", BANDWIDTH)
def test_bandwidths_are_the_data_sheets(name):
    assert DEVICES[name].bandwidth / 1e9 == pytest.approx(BANDWIDTH[name], rel=0.005)


@pytest.mark.parametrize("name", DEVICES)
def test_every_board_leaves_less_than_it_has_and_says_where_from(name):
    device = DEVICES[name]
    size = next(gb for part, gb in GIGABYTES.items() if part in name)
    assert 0.8 * size * GIB < device.free_bytes < device.memory_bytes < size * GIB
    assert {"memory", "bandwidth"} <= set(device.sources)
    assert all(device.sources.values())
    assert device.has_gpu
    assert device.is_timed


def test_only_thor_has_fp8():
    assert [name for name, device in DEVICES.items() if device.fp8] == ["thor"]


def test_an_unknown_board_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'nano', needed one of orin-nano-8gb, .*, thor, this"):
        find_device("nano")
