"""Streamed histograms: exact whatever the batches, read back exactly, and strict when read."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.rounding.histogram import NUM_BINS, ActivationStats, Histogram

# Batches of very unlike sizes of numbers, zeros and subnormals too
SIZES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(-46, 37), st.integers(0, 2**32)),
    min_size=1,
    max_size=5,
)


def make_batches(sizes, num_channels=5):
    return [
        (np.random.default_rng(seed).standard_normal((rows, num_channels)) * 10.0**power).astype(
            np.float32
        )
        for rows, power, seed in sizes
    ]


def make_stats(*batches):
    stats = ActivationStats(batches[0].shape[-1])
    for batch in batches:
        stats.update(batch)
    return stats


def assert_same(got, expected, *, rtol=0.0):
    assert (got.exponent, got.amax) == (expected.exponent, expected.amax)
    np.testing.assert_array_equal(got.counts, expected.counts)
    assert got.sum_squares == pytest.approx(expected.sum_squares, rel=rtol, abs=0)


@settings(max_examples=100, deadline=None)
@given(SIZES)
def test_batches_in_any_order_give_the_histogram_of_all_values_at_once(sizes):
    batches = make_batches(sizes)
    whole = make_stats(np.concatenate(batches))
    for order in (batches, batches[::-1]):
        streamed = make_stats(*order)
        assert_same(streamed.histogram, whole.histogram, rtol=1e-12)
        np.testing.assert_array_equal(streamed.channel_amax, whole.channel_amax)
        np.testing.assert_allclose(
            streamed.channel_mean_square, whole.channel_mean_square, rtol=1e-6
        )
        assert streamed.count == whole.count


@settings(max_examples=50, deadline=None)
@given(SIZES, SIZES)
def test_merged_statistics_are_those_of_both_streams(first, second):
    batches = make_batches(first), make_batches(second)
    merged = make_stats(*batches[0]).merge(make_stats(*batches[1]))
    expected = make_stats(*batches[0], *batches[1])
    assert_same(merged.histogram, expected.histogram, rtol=1e-12)
    np.testing.assert_array_equal(merged.channel_amax, expected.channel_amax)
    np.testing.assert_allclose(merged.channel_sum_squares, expected.channel_sum_squares, rtol=1e-12)
    assert merged.count == expected.count


def test_counts_are_those_of_numpy_over_the_next_power_of_two():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 3
    histogram = Histogram.of(values)
    assert np.abs(values).max() > 8
    assert histogram.exponent == 4
    expected, edges = np.histogram(np.abs(values), NUM_BINS, (0, 16))
    np.testing.assert_array_equal(histogram.counts, expected)
    np.testing.assert_array_equal(histogram.edges, edges)
    assert histogram.amax == np.abs(values).max()
    assert histogram.count == 10_000
    assert histogram.sum_squares == pytest.approx(np.square(values, dtype=np.float64).sum())


def test_the_range_grows_by_merging_bins():
    small = Histogram.of(np.float32([0.3, 0.9]))
    grown = small.merge(Histogram.of(np.float32([5.0])))
    assert grown.exponent == 3
    assert np.flatnonzero(grown.counts).tolist() == [int(v * 256) for v in (0.3, 0.9, 5.0)]


def test_a_power_of_two_lies_inside_the_range():
    assert Histogram.of(np.float32([1.0])).exponent == 1
    assert Histogram.of(np.float32([np.finfo(np.float32).max])).count == 1


def test_values_that_fill_several_blocks_are_all_counted(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((300, 7)).astype(np.float32)
    whole = make_stats(rows)
    monkeypatch.setattr("vlmedge.quant.rounding.histogram.BLOCK_ELEMENTS", 64)
    parts = make_stats(rows)
    assert_same(parts.histogram, whole.histogram, rtol=1e-12)
    np.testing.assert_array_equal(parts.channel_amax, whole.channel_amax)


def test_channel_numbers_are_those_of_the_rows_and_leading_axes_are_rows():
    x = np.random.default_rng(0).standard_normal((2, 10, 4)).astype(np.float32)
    stats = make_stats(x)
    assert stats.count == 20
    np.testing.assert_array_equal(stats.channel_amax, np.abs(x).max(axis=(0, 1)))
    np.testing.assert_allclose(stats.channel_mean_square, (x**2).mean(axis=(0, 1)), rtol=1e-6)


def test_zeros_and_no_rows_at_all_are_counted_as_such():
    stats = make_stats(np.zeros((3, 4), np.float32))
    assert (stats.histogram.amax, stats.histogram.count) == (0, 12)
    stats.update(np.zeros((0, 4), np.float32))
    assert stats.count == 3
    assert not make_stats(np.zeros((0, 4), np.float32)).channel_mean_square.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_added(bad):
    stats = make_stats(np.ones((2, 4), np.float32))
    before = stats.to_dict()
    rows = np.ones((3, 4), np.float32)
    rows[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        stats.update(rows)
    assert stats.to_dict() == before


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"needed \[\.\.\., 4\]"):
        ActivationStats(4).update(np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match="4 and of 5 channels"):
        ActivationStats(4).merge(ActivationStats(5))


@settings(max_examples=100, deadline=None)
@given(SIZES)
def test_statistics_come_back_from_json_to_the_bit(sizes):
    stats = make_stats(*make_batches(sizes, num_channels=21))
    again = ActivationStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    assert_same(again.histogram, stats.histogram)
    assert again.count == stats.count
    for name in ("channel_amax", "channel_sum_squares"):
        got, expected = getattr(again, name), getattr(stats, name)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_what_is_written_is_small_and_another_batch_changes_few_lines():
    x = np.random.default_rng(0).standard_normal((1000, 1280)).astype(np.float32)
    stats = make_stats(x)
    before = json.dumps(stats.to_dict(), indent=1)
    assert len(before) < 60_000
    assert max(map(len, before.splitlines())) < 400
    stats.update(np.float32([[0.5] + [0.0] * 1279]))
    after = json.dumps(stats.to_dict(), indent=1)
    changed = set(after.splitlines()) - set(before.splitlines())
    assert len(changed) == 5  # rows, both sums of squares, two lines of counts


WRONG = {
    "rows": [-1, 1.5, "3", None, True, 99],
    "channels": [-1, 4.0, 5],
    "channel_amax": [None, [], ["1 2 3"], ["1 2 3 x"], ["1 2 3 -4"], ["1 2 3 nan"], [1, 2, 3, 4]],
    "channel_sum_squares": [{}, ["1 2 3 inf"], ["1 2 3 4 5"]],
}
WRONG_HISTOGRAM = {
    "exponent": [99, "1", 1.0, None],
    "amax": [-1.0, "1", None, 1e300, 0.1, float("nan"), float("inf")],
    "sum_squares": [-1.0, None, float("inf")],
    "counts": [None, [], ["1"] * 31, ["-1"] * 32, ["1.5"] * 32, ["1 " * 65] * 32, ["9" * 30] * 32],
}


def make_data():
    return make_stats(np.float32([[1, 2, 3, 3.5], [0, 0.25, 1, 1]])).to_dict()


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG.items() for v in values])
def test_a_wrong_value_is_an_error_that_names_its_key(key, value):
    data = make_data()
    data[key] = value
    # a wrong size is found where the numbers are counted
    with pytest.raises(ValueError, match=f"{key}|rows x channels|needed 5"):
        ActivationStats.from_dict(data)


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in WRONG_HISTOGRAM.items() for v in values]
)
def test_a_wrong_value_of_the_histogram_is_an_error_that_names_its_key(key, value):
    data = make_data()
    data["histogram"][key] = value
    with pytest.raises(ValueError, match=f"histogram: {key}"):
        ActivationStats.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_what_is_no_statistics_at_all_is_refused(data):
    with pytest.raises(ValueError, match=r"needed an object|missing"):
        ActivationStats.from_dict(data)


def test_missing_and_unknown_keys_are_named():
    for key in make_data():
        data = make_data()
        del data[key]
        with pytest.raises(ValueError, match=f"{key} is missing"):
            ActivationStats.from_dict(data)
    with pytest.raises(ValueError, match="'surplus' is an unknown key"):
        ActivationStats.from_dict({**make_data(), "surplus": 1})


def test_counts_that_were_changed_by_hand_are_found():
    data = make_data()
    assert ActivationStats.from_dict(data).count == 2
    changed = copy.deepcopy(data)
    changed["histogram"]["counts"][0] = "9" + changed["histogram"]["counts"][0][1:]
    with pytest.raises(ValueError, match="counts sum to"):
        ActivationStats.from_dict(changed)
    changed = copy.deepcopy(data)
    changed["histogram"]["counts"][-1] = "1"
    with pytest.raises(ValueError, match="counts and amax disagree"):
        ActivationStats.from_dict(changed)
    changed = copy.deepcopy(data)
    changed["channel_amax"] = ["1.0 2.0 3.0 3.25"]
    with pytest.raises(ValueError, match="channel_amax reaches"):
        ActivationStats.from_dict(changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*WRONG, *WRONG_HISTOGRAM]), JSON)
def test_any_json_in_place_of_a_value_is_read_or_refused_by_a_valueerror(key, value):
    data = make_data()
    (data if key in data else data["histogram"])[key] = value
    try:
        stats = ActivationStats.from_dict(data)
    except ValueError:
        return
    assert stats.histogram.amax == 3.5
    assert stats.histogram.count == 8
