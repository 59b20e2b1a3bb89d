"""JSON that two parsers may read differently is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.files.json_text import MAX_DIGITS, parse_json
from vlmedge.runtime.files.plain_text import MAX_TEXT, check_plain, find_control

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.text()
    | st.floats(-1e300, 1e300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_json_writes_is_read_as_json_reads_it(value):
    text = json.dumps(value)
    assert parse_json(text, "x") == json.loads(text)
    assert parse_json(text.encode(), "x") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' twice"),
        ('{"x": [{"b": 1, "\\u0062": 2}]}', "the key 'b' twice"),
        ('{"a\\n": 1, "a\\n": 2}', r"'a\\n' twice"),
        ("1e999", "1e999"),
        ('{"a": -1e999}', "-1e999"),
        ("[NaN]", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "Infinity"),
        ("1" * (MAX_DIGITS + 1), f"{MAX_DIGITS + 1} digits"),
        ("9" * 5000, "5000 digits"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("[1] [2]", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_anything_else_is_named(text, word):
    with pytest.raises(BundleError, match=word) as caught:
        parse_json(text, "some.json", BundleError)
    assert str(caught.value).startswith("some.json ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_number_too_small_for_a_float_is_zero_as_everywhere():
    assert parse_json("1e-999", "x") == 0


def test_our_own_work_files_may_hold_infinity_but_no_key_twice():
    assert parse_json("[Infinity, -Infinity]", "x", with_infinity=True) == [
        float("inf"),
        float("-inf"),
    ]
    with pytest.raises(ValueError, match="twice"):
        parse_json('{"a": Infinity, "a": 1}', "x", with_infinity=True)


PLAIN = ["", "a b", "tab is none", "größe", "模型", "שלום", "e\u0301", "\U0001f600", "$(x) `x` <b>"]


@pytest.mark.parametrize("text", PLAIN)
def test_text_of_any_language_is_plain(text):
    assert find_control(text) is None
    check_plain({text: [text]}, "x")


def test_controls_are_named_with_their_place(hostile_control):
    with pytest.raises(ValueError, match=r"x\.a\[1\] holds the character U\+"):
        check_plain({"a": ["fine", hostile_control]}, "x")
    with pytest.raises(ValueError, match=r"a key of x\.a holds the character U\+") as caught:
        check_plain({"a": {hostile_control: 1}}, "x")
    assert find_control(str(caught.value)) is None  # nor does the message hold it


def test_texts_have_a_longest():
    check_plain("x" * MAX_TEXT, "x")
    with pytest.raises(ValueError, match=f"{MAX_TEXT + 1} characters"):
        check_plain("x" * (MAX_TEXT + 1), "x")


def test_one_text_may_have_lines():
    check_plain({"toml": "a\n\tb" * 9999}, "x", long_texts=("x.toml",))
    with pytest.raises(ValueError, match=r"U\+000D"):
        check_plain({"toml": "a\r\n"}, "x", long_texts=("x.toml",))


def test_nesting_of_any_depth_is_walked():
    value: list = []
    for _ in range(100_000):
        value = [value]
    check_plain(value, "x")
