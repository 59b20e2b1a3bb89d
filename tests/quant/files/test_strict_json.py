"""Numbers of a cache: written short, read to the bit, refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.quant.files.strict_json import (
    check_keys,
    read_number,
    read_vector,
    shorten,
    write_vector,
)


@given(st.lists(st.floats(0, width=32, allow_infinity=False, allow_nan=False), max_size=40))
def test_float32_vectors_come_back_to_the_bit(values):
    vector = np.array(values, np.float32)
    again = read_vector({"v": write_vector(vector)}, "v", len(vector), np.float32)
    np.testing.assert_array_equal(again.view(np.uint32), vector.view(np.uint32))


@given(st.lists(st.floats(0, allow_infinity=False, allow_nan=False), max_size=40))
def test_float64_vectors_come_back_to_the_bit(values):
    vector = np.array(values, np.float64)
    again = read_vector({"v": write_vector(vector)}, "v", len(vector), np.float64)
    np.testing.assert_array_equal(again.view(np.uint64), vector.view(np.uint64))


def test_numbers_are_as_short_as_their_dtype_allows():
    assert write_vector(np.float32([0.1, 1 / 3])) == ["0.1 0.33333334"]
    assert [line.count(" ") for line in write_vector(np.ones(20))] == [15, 3]


def test_a_vector_of_another_size_is_refused():
    for lines in ([], ["1"], ["1 2 3"], ["1 2", "3"]):
        with pytest.raises(ValueError, match=r"v holds \d numbers, needed 2"):
            read_vector({"v": lines}, "v", 2, np.float32)


def test_the_wrong_number_of_a_vector_is_named():
    with pytest.raises(ValueError, match=r"v\[1\] is 'x', needed a number"):
        read_vector({"v": ["1 x"]}, "v", 2, np.float32)
    with pytest.raises(ValueError, match=r"v\[0\] is '1e39', needed a finite number"):
        read_vector({"v": ["1e39 1"]}, "v", 2, np.float32)


@pytest.mark.parametrize("value", [10**400, 10**30, float("nan"), -1, True, "1", [1]])
def test_what_is_no_finite_number_of_the_dtype_is_refused(value):
    with pytest.raises(ValueError, match="n is"):
        read_number({"n": value}, "n", np.float32)


def test_keys_must_be_exactly_those_known():
    check_keys({"a": 1}, ("a",))
    with pytest.raises(ValueError, match="b is missing"):
        check_keys({"a": 1}, ("a", "b"))
    with pytest.raises(ValueError, match="'c' is an unknown key"):
        check_keys({"a": 1, "c": 1}, ("a",))


def test_messages_stay_short():
    assert len(shorten("x" * 1000)) == 60
