"""What calibration keeps of a layer's input: numbers over all rows, an even sample of them."""

import numpy as np
import pytest

from vlmedge.quant.rounding.activations import MAX_SAMPLE_ROWS, LayerInput


def draw(num_rows, num_channels=6, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, num_channels), np.float32)


def test_statistics_are_of_all_rows():
    batches = [draw(5000, seed=1), draw(7, seed=2) * 9]
    seen = LayerInput(6, len(batches), with_moments=False)
    for batch in batches:
        seen.update(batch)
    rows = np.concatenate(batches)
    np.testing.assert_array_equal(seen.stats.channel_amax, np.abs(rows).max(axis=0))
    mean_square = (rows.astype(np.float64) ** 2).mean(axis=0)
    np.testing.assert_allclose(seen.stats.channel_mean_square, mean_square, rtol=1e-12)
    assert seen.stats.count == 5007


def test_moments_are_the_mean_of_outer_products_of_all_rows():
    batches = [draw(300, seed=1), draw(40, seed=2)]
    seen = LayerInput(6, 2, with_moments=True)
    for batch in batches:
        seen.update(batch)
    rows = np.concatenate(batches).astype(np.float64)
    needed = np.mean([np.outer(row, row) for row in rows], axis=0)
    np.testing.assert_allclose(seen.moments(), needed, rtol=1e-4, atol=1e-5)


def test_each_input_gives_an_equal_share_of_the_rows():
    seen = LayerInput(2, 4, with_moments=False)
    for number in range(4):
        size = 3000 if number else 10  # one is too small for its share
        seen.update(np.full((size, 2), number, np.float32))
    numbers, counts = np.unique(seen.rows[:, 0], return_counts=True)
    assert numbers.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [10, *[MAX_SAMPLE_ROWS // 4] * 3]


def test_sampled_rows_are_rows_each_once_in_order_and_the_same_every_time():
    rows = np.arange(9000, dtype=np.float32)[:, None]
    samples = []
    for _ in range(2):
        seen = LayerInput(1, 3, with_moments=False)
        seen.update(rows)
        samples.append(seen.rows[:, 0])
    np.testing.assert_array_equal(*samples)
    assert len(samples[0]) == -(-MAX_SAMPLE_ROWS // 3)
    assert (np.diff(samples[0]) > 0).all()  # none twice
    assert set(samples[0]) <= set(rows[:, 0])
    assert samples[0].max() > 8000  # of the whole input, not of its beginning
    assert samples[0].min() < 1000


def test_the_sample_never_outgrows_its_limit_by_more_than_rounding():
    for num_inputs in (1, 3, 64, 5000):
        seen = LayerInput(1, num_inputs, with_moments=False)
        for _ in range(num_inputs):
            seen.update(np.ones((50, 1), np.float32))
        assert len(seen.rows) <= MAX_SAMPLE_ROWS + num_inputs


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    seen = LayerInput(2, 1, with_moments=True)
    with pytest.raises(ValueError, match="NaN or infinite"):
        seen.update(np.array([[1, value]], np.float32))
    assert seen.stats.count == 0
