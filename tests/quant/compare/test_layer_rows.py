import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.quant.compare.layer_rows import MAX_ROWS, MIN_ROWS_EACH, RowShelf, pick_rows
from vlmedge.quant.compare.shelf import ArrayShelf


@given(st.integers(1, 20_000), st.integers(0, 5000))
def test_rows_are_spread_over_an_input_from_its_first_to_its_last(num_rows, num_inputs):
    rows = pick_rows(num_rows, num_inputs)
    assert rows[0] == 0
    if num_rows > 1:
        assert rows[-1] == num_rows - 1
    steps = np.diff(rows)
    assert len(rows) == 1 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert min(num_rows, MIN_ROWS_EACH) <= len(rows) <= MAX_ROWS
    if num_inputs * MIN_ROWS_EACH <= MAX_ROWS:
        assert len(rows) * max(1, num_inputs) <= MAX_ROWS


def test_a_short_input_is_looked_at_whole():
    assert pick_rows(5, 100).tolist() == [0, 1, 2, 3, 4]


def test_a_shelf_gives_back_rows_by_layer_and_input():
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 4), np.float32)
    with ArrayShelf() as arrays:
        shelf = RowShelf(arrays)
        shelf.put("model.layers.0.mlp.gate_proj+up_proj", 3, x, y)
        shelf.put("model.layers.0.mlp.gate_proj+up_proj", 0, -x, y)
        assert sorted(shelf.list_inputs("model.layers.0.mlp.gate_proj+up_proj")) == [0, 3]
        assert not shelf.list_inputs("lm_head")
        got = shelf.read("model.layers.0.mlp.gate_proj+up_proj", 3)
        np.testing.assert_array_equal(got[0], x)
        np.testing.assert_array_equal(got[1], y)
