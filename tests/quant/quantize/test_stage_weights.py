"""Weights of one stage while scales move between its layers, by hand on small matrices."""

import numpy as np
import pytest

from vlmedge.quant.graph.folding import Fold
from vlmedge.quant.graph.linears import Linear
from vlmedge.quant.quantize.plan import LayerPlan
from vlmedge.quant.quantize.stage_weights import StageWeights
from vlmedge.quant.recipe.recipe import LinearRecipe

GENERATOR = np.random.default_rng(0)
# qkv: queries of 4 rows, keys and values of 2; proj has 4 channels of 2 value channels
STORED = {
    "norm.weight": GENERATOR.standard_normal(3, np.float32),
    "norm.bias": GENERATOR.standard_normal(3, np.float32),
    "qkv.weight": GENERATOR.standard_normal((8, 3), np.float32),
    "qkv.bias": GENERATOR.standard_normal(8, np.float32),
    "proj.weight": GENERATOR.standard_normal((5, 4), np.float32),
}
NORM = Fold(np.arange(3), vectors=("norm.weight", "norm.bias"))
VALUES = Fold(np.array([0, 1, 0, 1]), rows=("qkv", 6))
IN = np.array([2, 0.5, 4], np.float32)
OUT = np.array([8, 0.25, 8, 0.25], np.float32)


class Weights:
    """The bundle's reader: counts what is asked."""

    def __init__(self):
        self.asked = []

    def read(self, name):
        self.asked.append(name)
        return STORED[name].copy()


@pytest.fixture
def state():
    plans = {}
    for name, bias in (("qkv", "qkv.bias"), ("proj", None)):
        rows, columns = STORED[f"{name}.weight"].shape
        linear = Linear(name, "s", "/n/M", "x", "y", f"{name}.weight", bias, rows, columns)
        plans[name] = LayerPlan(linear, "vision", LinearRecipe(), "recipe")
    return StageWeights(Weights(), plans)


def test_what_is_not_folded_is_the_bundles(state):
    np.testing.assert_array_equal(state.matrix("qkv"), STORED["qkv.weight"])
    np.testing.assert_array_equal(state.bias("qkv"), STORED["qkv.bias"])
    assert state.bias("proj") is None
    assert state.list_replaced([]) == {}
    state.matrix("qkv")
    assert state._weights.asked.count("qkv.weight") == 1


def test_columns_are_multiplied_and_the_norm_is_divided(state):
    state.fold("qkv", NORM, IN)
    np.testing.assert_array_equal(state.matrix("qkv"), STORED["qkv.weight"] * IN)
    replaced = state.list_replaced([])
    assert set(replaced) == {"norm.weight", "norm.bias", "qkv.weight"}
    for name in ("norm.weight", "norm.bias"):
        np.testing.assert_array_equal(replaced[name], STORED[name] / IN)
    np.testing.assert_array_equal(state.bias("qkv"), STORED["qkv.bias"])


def test_rows_of_the_values_are_divided_once_and_only_they(state):
    state.fold("proj", VALUES, OUT)
    divisor = np.array([1, 1, 1, 1, 1, 1, 8, 0.25], np.float32)
    np.testing.assert_array_equal(state.matrix("qkv"), STORED["qkv.weight"] / divisor[:, None])
    np.testing.assert_array_equal(state.bias("qkv"), STORED["qkv.bias"] / divisor)
    np.testing.assert_array_equal(state.matrix("proj"), STORED["proj.weight"] * OUT)


def test_folds_of_neighbours_add_up_in_either_order(state):
    state.fold("qkv", NORM, IN)
    state.fold("proj", VALUES, OUT)
    divisor = np.array([1, 1, 1, 1, 1, 1, 8, 0.25], np.float32)
    needed = STORED["qkv.weight"] * IN / divisor[:, None]
    np.testing.assert_array_equal(state.matrix("qkv"), needed)
    first = {name: array.copy() for name, array in state.list_replaced([]).items()}
    other = StageWeights(Weights(), state._plans)
    other.fold("proj", VALUES, OUT)
    other.fold("qkv", NORM, IN)
    second = other.list_replaced([])
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


def test_quantized_layers_bring_their_own_matrix_and_vectors_are_replaced_all_the_same(state):
    state.fold("qkv", NORM, IN)
    state.fold("proj", VALUES, OUT)
    assert set(state.list_replaced(["qkv", "proj"])) == {"norm.weight", "norm.bias", "qkv.bias"}
    assert set(state.list_replaced(["proj"])) == {
        "norm.weight",
        "norm.bias",
        "qkv.bias",
        "qkv.weight",
    }


def test_copies_of_one_channel_cannot_be_divided_by_two_numbers(state):
    with pytest.raises(ValueError, match="scales differ"):
        state.fold("proj", VALUES, np.array([8, 0.25, 8, 0.5], np.float32))
    assert state.list_replaced([]) == {}


def test_weights_that_are_no_numbers_are_refused(state, monkeypatch):
    monkeypatch.setitem(STORED, "qkv.weight", np.full((8, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="the weights hold NaN"):
        state.matrix("qkv")
