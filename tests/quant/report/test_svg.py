"""Ticks, scales and elements of plots."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.report.svg import (
    Axis,
    drawing,
    element,
    escape,
    fit_range,
    fixed,
    format_number,
    make_ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 21, [0, 5, 10, 15, 20]),
        (0.98, 1.001, [0.98, 0.985, 0.99, 0.995, 1]),
        (100, 900, [200, 400, 600, 800]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert make_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
@settings(max_examples=100, deadline=None)
def test_ticks_lie_in_the_range_and_are_few(low, span):
    ticks = make_ticks(low, low + span)
    assert 2 <= len(ticks) <= 13
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def test_an_axis_puts_its_ends_on_its_pixels_and_keeps_what_is_outside_on_the_edge():
    axis = Axis(10, 20, 200, 0)  # going up
    assert [axis.pixel(value) for value in (10, 15, 20, 25, -5)] == [200, 100, 0, 0, 200]


def test_a_log_axis_has_equal_steps_for_equal_ratios():
    axis = Axis(1e-4, 1, 0, 400, is_log=True)
    assert [axis.pixel(value) for value in (1e-4, 1e-3, 1e-1, 1)] == pytest.approx(
        [0, 100, 300, 400]
    )
    assert axis.pixel(0) == 0
    assert axis.ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert Axis(0.15, 1.2, 0, 1, is_log=True).ticks() == pytest.approx([0.2, 0.5, 1])


def test_a_range_has_air_around_finite_values_only():
    low, high = fit_range([3, math.nan, 5, math.inf])
    assert 2 < low < 3
    assert 5 < high < 6
    low, high = fit_range([7, 7])
    assert low < 7 < high
    assert fit_range([math.nan])[0] < fit_range([math.nan])[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (-2.5, "\u22122.5"),
        (1234.56, "1235"),
        (2e-7, "2e\u22127"),
        (1.5e9, "1.5e9"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "\u2212∞"),
    ],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (1.25, 1, True, "+1.2"),
        (-1.26, 1, True, "\u22121.3"),
        (-0.01, 1, True, "0.0"),
        (3, 2, False, "3.00"),
        (math.nan, 2, True, "NaN"),
    ],
)
def test_numbers_have_the_digits_asked_for(value, digits, sign, text):
    assert fixed(value, digits, sign=sign) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_is_escaped_for_xml(text):
    drawn = drawing(10, 10, text, [element("text", text, title=text, class_=text, x=1.5)])
    root = ET.fromstring(drawn)
    needed = "".join(c if ord(c) >= 32 or c in "\t\n\r" else "\ufffd" for c in text)
    read = "".join(root[0].itertext())
    assert len(read) >= len(needed)
    assert root[0].get("x") == "1.5"


def test_escaped_text_is_read_back():
    name = '<a href="x">&\'</a>'
    root = ET.fromstring(element("text", name, title=name, class_=name))
    assert root.get("class") == name
    assert root[0].text == name
    assert root[0].tail == name
    assert "<a" not in escape(name)
