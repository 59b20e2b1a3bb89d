"""The table of targets, and what a device is refused."""

import dataclasses
from typing import get_args

import pytest

from vlmedge.export.lowering.targets import (
    NO_ARITHMETIC,
    TARGETS,
    Device,
    check_device,
    find_target,
)

NAMES = ["jetpack-6.2", "jetpack-7.0", "jetpack-7.2", "tensorrt-11", "tensorrt-rtx"]
FP8 = ["int8 block 128", "float8_e4m3fn", "float32", "float8_e4m3fn"]


def test_the_table_has_the_jetpacks_and_their_tensorrt():
    assert list(TARGETS) == NAMES
    assert all(name == target.name for name, target in TARGETS.items())
    assert [target.tensorrt for target in TARGETS.values()] == [
        "10.3",
        "10.13",
        "10.16",
        "11.0",
        "RTX 1.5",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_fused_operators_come_with_the_opset_that_has_them(name):
    # Attention and the others came to TensorRT's parser with 10.15, which reads opset 24.
    target = find_target(name)
    is_old = name in ("jetpack-6.2", "jetpack-7.0")
    assert (target.opset, target.fused) == ((20, False) if is_old else (24, True))
    assert target.cache == ("append" if is_old else "in_place")


def test_int4_blocks_of_the_full_tensorrt_are_those_of_its_documents():
    for name in NAMES[:-1]:
        assert TARGETS[name].int4_blocks == (64, 128)
        assert TARGETS[name].int8_blocks == ()


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TARGETS["jetpack-6.2"].opset = 24


@pytest.mark.parametrize("name", ["jetpack-5", "", "JETPACK-6.2"])
def test_an_unknown_target_is_told_with_all_names(name):
    with pytest.raises(ValueError, match="needed one of") as error:
        find_target(name)
    assert repr(name) in str(error.value)
    assert all(known in str(error.value) for known in NAMES)


@pytest.mark.parametrize(("target", "device"), [("jetpack-6.2", None), ("jetpack-6.2", "orin")])
@pytest.mark.parametrize("also", ["float8_e4m3fn", "float8_e4m3fn rows"])
def test_fp8_is_refused_where_the_target_comes_with_orin_only(target, device, also):
    with pytest.raises(ValueError, match="recipe orin") as error:
        check_device([*FP8, also], find_target(target), device)
    assert "3 layers" in str(error.value)
    assert "float8_e4m3fn" in str(error.value)


@pytest.mark.parametrize("target", ["jetpack-7.2", "tensorrt-11", "tensorrt-rtx"])
def test_fp8_is_refused_for_orin_and_left_to_others_where_the_device_is_open(target):
    check_device(FP8, find_target(target), None)
    check_device(FP8, find_target(target), "thor")
    with pytest.raises(ValueError, match="orin has no arithmetic"):
        check_device(FP8, find_target(target), "orin")


def test_int8_and_int4_go_everywhere():
    precisions = ["int8 static", "int8 dynamic", "int4 block 64", "float16", "bfloat16", "float32"]
    for target in TARGETS.values():
        for device in target.devices or get_args(Device):
            check_device(precisions, target, device)


@pytest.mark.parametrize(("target", "device"), [("jetpack-6.2", "thor"), ("jetpack-7.0", "orin")])
def test_a_device_that_the_target_does_not_come_with_is_told(target, device):
    with pytest.raises(ValueError, match=f"comes with .*not with {device}"):
        check_device([], find_target(target), device)


def test_every_device_of_the_table_has_its_rule():
    assert set(NO_ARITHMETIC) == set(get_args(Device))
    for target in TARGETS.values():
        assert set(target.devices) <= set(get_args(Device))
