"""Which range a layer's input gets: what the recipe asks for, and what costs the output least."""

import dataclasses

import numpy as np
import pytest

from vlmedge.quant.graph.folding import Fold
from vlmedge.quant.quantize.input_range import ask, find_range, make_scale, plain_range
from vlmedge.quant.recipe.recipe import LinearRecipe
from vlmedge.quant.rounding.activations import LayerInput

PLAIN = LinearRecipe("int8", smooth="off", shift="off")
FOLD = Fold(np.arange(16), vectors=("norm.weight",))


def draw(seed=0):
    """Rows with an outlier channel and a lopsided one, and a matrix."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((500, 16), np.float32)
    x[:, 3] *= 40
    x[:, 7] = 20 + np.abs(x[:, 7])
    return x, generator.standard_normal((24, 16), np.float32)


def see(x):
    seen = LayerInput(x.shape[1], 1, with_moments=False)
    seen.update(x)
    return seen


def find(recipe, *, fold=FOLD, has_bias=True):
    x, matrix = draw()
    return find_range(recipe, see(x), matrix, fold, has_bias=has_bias)


def measure(x, matrix, found):
    """Relative error of the layer's output, int8 by numpy."""
    scales = np.ones(16) if found.scales is None else found.scales
    shift = np.zeros(16) if found.shift is None else found.shift
    changed, migrated = x / scales - shift, matrix * scales
    step, rows = found.amax / 127, np.abs(migrated).max(axis=1, keepdims=True) / 127
    rounded = np.clip(np.rint(changed / step), -128, 127) * step
    got = rounded @ (np.rint(migrated / rows) * rows).T + shift @ migrated.T
    needed = x @ matrix.T
    return np.linalg.norm(got - needed) / np.linalg.norm(needed)


def test_minmax_without_migration_is_the_largest_magnitude():
    found = find(dataclasses.replace(PLAIN, ranges="minmax"))
    assert found.amax == np.abs(draw()[0]).max()
    assert found.scales is None
    assert found.shift is None
    assert found.strength is None


def test_percentile_is_the_recipes_own():
    x, _ = draw()
    for percentile in (90.0, 99.0, 100.0):
        recipe = dataclasses.replace(PLAIN, ranges="percentile", percentile=percentile)
        needed = np.quantile(np.abs(x), percentile / 100)
        assert abs(find(recipe).amax - needed) < 0.01 * np.abs(x).max()


def test_what_is_chosen_costs_no_more_than_what_it_was_chosen_from():
    x, matrix = draw()
    errors = {}
    for smooth in ("off", "search"):
        for shift in ("off", "search"):
            found = find(LinearRecipe("int8", smooth=smooth, shift=shift))
            errors[smooth, shift] = measure(x, matrix, found)
            if (smooth, shift) != ("off", "off"):
                assert abs(found.error - errors[smooth, shift]) < 0.1 * found.error
                assert found.error <= found.error_without
    plain = errors["off", "off"]
    assert errors["search", "off"] < 0.8 * plain
    assert errors["off", "search"] < plain
    assert errors["search", "search"] <= min(errors.values()) * 1.05


def test_a_given_strength_is_the_one_that_is_tried():
    assert find(LinearRecipe("int8", smooth=0.5, shift="off")).strength in (0.5, None)


def test_minmax_after_migration_is_of_all_rows_not_of_those_kept():
    x, matrix = draw()
    many = np.concatenate([x] * 10)
    many[17, 3] = 250  # twice as large as all others, in a row that the sample may not hold
    seen = see(many)
    recipe = LinearRecipe("int8", ranges="minmax", smooth=0.5, shift="off")
    found = find_range(recipe, seen, matrix, FOLD, has_bias=True)
    assert found.scales is not None
    assert found.amax == (np.abs(many).max(axis=0) / found.scales).max()


def test_channels_that_fold_into_one_share_their_scale():
    fold = Fold(np.arange(16) % 4, vectors=("norm.weight",))
    scales = find(LinearRecipe("int8", shift="off"), fold=fold).scales
    np.testing.assert_array_equal(scales, np.tile(scales[:4], 4))


def test_nothing_is_migrated_without_a_place_nor_shifted_without_a_bias():
    found = find(LinearRecipe("int8"), fold=None, has_bias=False)
    assert (found.scales, found.shift, found.strength) == (None, None, None)
    assert find(LinearRecipe("int8"), has_bias=False).shift is None
    assert find(LinearRecipe("fp8")).shift is None  # FP8's steps are finest around 0


def test_a_range_answers_its_own_question_and_no_other():
    recipe = LinearRecipe("int8")
    found = find(recipe)
    assert found.answers(recipe)
    # what decides about weights alone is no question about the input
    assert found.answers(dataclasses.replace(recipe, method="gptq", block_size=128))
    for change in (
        {"format": "fp8"},
        {"ranges": "minmax"},
        {"percentile": 99.0},
        {"smooth": 0.5},
        {"smooth": "off"},
        {"shift": "off"},
    ):
        assert not found.answers(dataclasses.replace(recipe, **change))


def test_shift_is_no_question_of_fp8():
    recipe = LinearRecipe("fp8")
    assert ask(recipe) == ask(dataclasses.replace(recipe, shift="off"))
    assert ask(LinearRecipe("int8")) != ask(LinearRecipe("int8", shift="off"))


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_a_shift_is_the_middle_of_all_that_was_seen(ranges):
    x, matrix = draw()
    x[:, 7] += 100
    seen = see(np.concatenate([x] * 10))
    recipe = LinearRecipe("int8", ranges=ranges, smooth="off")
    found = find_range(recipe, seen, matrix, FOLD, has_bias=True)
    middle = (x.max(axis=0) + x.min(axis=0)) / 2
    np.testing.assert_allclose(found.shift, middle, rtol=1e-6)
    if ranges == "minmax":
        assert found.amax == np.float32((x.max(axis=0) - x.min(axis=0)) / 2).max()


def test_scales_put_the_range_on_the_last_level():
    assert make_scale(PLAIN, 12.7) == pytest.approx(0.1)
    assert make_scale(LinearRecipe("fp8"), 448.0) == 1.0


def test_the_plain_range_needs_no_rows():
    x, _ = draw()
    recipe = LinearRecipe("int8", ranges="minmax")
    assert plain_range(recipe, see(x).stats) == np.abs(x).max()
