"""The graph under construction: a Cast where one is needed and no second one, constants in type."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from vlmedge.export.lowering.emitter import ONNX_TYPES, TYPE_NAMES, Emitter, narrow

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
NARROW = ("float16", "bfloat16")


@pytest.fixture
def emitter():
    made = Emitter("float16")
    made.types["x"] = "float32"
    return made


def test_a_cast_is_made_once_for_all_who_want_it(emitter):
    first = emitter.cast("x", "float16")
    assert emitter.cast("x", "float16") == first
    assert emitter.types[first] == "float16"
    assert [node.op_type for node in emitter.nodes] == ["Cast"]
    assert onnx.helper.get_attribute_value(emitter.nodes[0].attribute[0]) == ONNX_TYPES["float16"]


def test_a_value_of_the_type_needs_no_cast(emitter):
    assert emitter.cast("x", "float32") == "x"
    assert emitter.nodes == []


def test_casts_to_two_types_are_two(emitter):
    assert emitter.cast("x", "float16") != emitter.cast("x", "bfloat16")


def test_a_cast_with_a_name_of_its_own_is_not_what_others_get(emitter):
    assert emitter.cast("x", "float16", output="logits") == "logits"
    assert emitter.cast("x", "float16") != "logits"


def test_a_cast_that_is_asked_for_by_name_is_made_though_the_type_is_there(emitter):
    # An output must have its own name.
    assert emitter.cast("x", "float32", output="y") == "y"
    assert len(emitter.nodes) == 1


def test_a_node_has_its_first_inputs_type_or_the_one_that_is_said(emitter):
    assert emitter.types[emitter.op("Abs", ["x"], "/a")] == "float32"
    assert emitter.types[emitter.op("Shape", ["x"], "/b", dtype="int64", start=1)] == "int64"
    assert [node.name for node in emitter.nodes] == ["/a", "/b"]


def test_a_node_of_a_value_that_nobody_made_is_an_error(emitter):
    with pytest.raises(KeyError):
        emitter.op("Abs", ["nothing"], "/a")


@pytest.mark.parametrize("dtype", TYPES)
def test_a_constant_is_in_the_type_that_is_asked_for(emitter, dtype):
    name = emitter.constant("third", np.array([1 / 3, -2], np.float32), dtype)
    array = numpy_helper.to_array(emitter.initializers[name])
    assert array.dtype == TYPES[dtype]
    assert emitter.types[name] == dtype
    assert array.tolist() == np.array([1 / 3, -2], np.float32).astype(TYPES[dtype]).tolist()


def test_types_of_one_constant_do_not_take_each_others_place(emitter):
    names = {emitter.constant("third", np.float32(1 / 3), dtype) for dtype in TYPES}
    assert len(names) == len(emitter.initializers) == 3


def test_integers_are_one_constant_for_all_who_want_them(emitter):
    first = emitter.integers(0, -1)
    assert emitter.integers(0, -1) == first
    assert emitter.integers(0, 1) != first
    array = numpy_helper.to_array(emitter.initializers[first])
    assert (array.dtype, array.tolist()) == (np.int64, [0, -1])


@settings(deadline=None, max_examples=100)
@given(value=st.floats(0, 60000, width=32, exclude_min=True), dtype=st.sampled_from(NARROW))
def test_no_positive_constant_becomes_zero(value, dtype):
    array = narrow(np.array([value, 0, -value], np.float32), dtype)
    assert array.dtype == TYPES[dtype]
    assert array[0] > 0
    assert array[1] == 0
    nearest = np.float32(value).astype(TYPES[dtype])
    if nearest > 0:
        assert array[0] == nearest
    else:
        assert array[0] == ml_dtypes.finfo(TYPES[dtype]).smallest_normal
    assert array[2] == (-np.float32(value)).astype(TYPES[dtype])


def test_narrowing_keeps_the_shape_of_a_scalar():
    assert narrow(np.array(1e-30, np.float32), "float16").shape == ()
    assert narrow(np.zeros((2, 3), np.float32), "bfloat16").shape == (2, 3)


def test_a_constant_over_float16s_range_says_what_to_do():
    for value in (70000, -70000):
        with pytest.raises(ValueError, match="70000 is no float16: use --dtype bf16"):
            narrow(np.array([1, value], np.float32), "float16")
    assert narrow(np.array(70000, np.float32), "bfloat16") == 70144


def test_names_of_types_are_one_to_one():
    assert {TYPE_NAMES[int(value)]: value for value in ONNX_TYPES.values()} == ONNX_TYPES
