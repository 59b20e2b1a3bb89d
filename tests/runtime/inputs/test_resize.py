"""Sizes against transformers and golden rows: integers, so equal."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlmedge.runtime.inputs.resize import smart_resize

GOLDEN = Path(__file__).parents[2] / "golden" / "smart_resize.json"
sides = st.integers(1, 6000)
budgets = st.tuples(st.integers(1, 1 << 21), st.integers(1, 1 << 24)).map(sorted)


@pytest.mark.parametrize(
    ("height", "width", "low", "high", "rows", "columns"), json.loads(GOLDEN.read_text())
)
def test_sizes_are_the_recorded_ones(height, width, low, high, rows, columns):
    assert smart_resize(height, width, 28, low, high) == (rows, columns)


@pytest.fixture(scope="module")
def reference():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.smart_resize


@given(height=sides, width=sides, budget=budgets)
@settings(max_examples=300, deadline=None)
def test_sizes_are_those_of_transformers(reference, height, width, budget):
    low, high = budget
    try:
        expected = reference(height, width, 28, low, high)
    except ValueError:
        with pytest.raises(ValueError, match="200 times"):
            smart_resize(height, width, 28, low, high)
    else:
        if 0 in expected:  # 13 x 13 at a minimum of 0: the reference returns an empty picture
            with pytest.raises(ValueError, match="nothing is left"):
                smart_resize(height, width, 28, low, high)
        else:
            assert smart_resize(height, width, 28, low, high) == expected


@given(sides, sides, budgets)
@settings(max_examples=300, deadline=None)
def test_sizes_are_whole_tokens_within_the_budget_where_the_picture_is_not_too_long(
    height, width, budget
):
    low, high = budget
    assume(max(height, width) <= 200 * min(height, width) and low * 16 <= high and high >= 6272)
    rows, columns = smart_resize(height, width, 28, low, high)
    assert rows % 28 == columns % 28 == 0
    assert rows > 0
    assert columns > 0
    if min(rows, columns) > 28:
        assert rows * columns <= high
    assert rows * columns >= low or rows * columns + 28 * (rows + columns) >= low


@pytest.mark.parametrize(
    ("size", "transformers", "qwen_vl_utils"),
    [
        ((13, 2000), (28, 700), (28, 1988)),
        ((1, 200), (28, 812), (28, 196)),
        ((5, 900), (28, 756), (28, 896)),
        ((7, 1400), (28, 812), (28, 1400)),
        ((1080, 1920), (728, 1316), (728, 1316)),
    ],
)
def test_the_two_rules_differ_for_thin_pictures_only(size, transformers, qwen_vl_utils):
    assert smart_resize(*size, 28, 3136, 1003520) == transformers
    assert smart_resize(*size, 28, 3136, 1003520, rule="qwen_vl_utils") == qwen_vl_utils


@given(st.integers(14, 6000), st.integers(14, 6000))
@settings(max_examples=300, deadline=None)
def test_the_two_rules_agree_from_14_pixels_on(height, width):
    assume(max(height, width) <= 200 * min(height, width) and min(height, width) != 14)
    assert smart_resize(height, width, 28, 3136, 12845056) == smart_resize(
        height, width, 28, 3136, 12845056, rule="qwen_vl_utils"
    )


@pytest.mark.parametrize(
    ("size", "limits", "message"),
    [
        ((0, 100), (3136, 1003520), "100x0"),
        ((100, -1), (3136, 1003520), "needed sides"),
        ((1 << 31, 1 << 31), (3136, 1003520), "needed sides"),
        ((10**400, 10**400), (3136, 1003520), "needed sides"),
        ((1, 201), (3136, 1003520), "over 200 times"),
        ((100, 100), (5000, 4999), "pixel limits"),
        ((100, 100), (0, 4999), "pixel limits"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(size, limits, message):
    with pytest.raises(ValueError, match=message):
        smart_resize(*size, 28, *limits)


def test_an_aspect_ratio_of_exactly_200_is_taken():
    assert smart_resize(1, 200, 28, 3136, 1003520) == (28, 812)


def test_a_picture_shrunk_to_nothing_by_the_authors_rule_is_refused():
    with pytest.raises(ValueError, match="nothing is left"):
        smart_resize(60, 12000, 28, 28, 100_000, rule="qwen_vl_utils")


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="resize rule is 'nearest'"):
        smart_resize(100, 100, 28, 3136, 1003520, rule="nearest")
