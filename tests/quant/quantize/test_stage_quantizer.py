"""Layers of a stage, quantized with what was seen of them: the error that is left, by numpy."""

import dataclasses

import numpy as np
import pytest

from vlmedge.quant.graph.folding import Fold
from vlmedge.quant.graph.linears import Linear
from vlmedge.quant.quantize import stage_quantizer as layer_quantizer
from vlmedge.quant.quantize.calibration import LayerCalibration
from vlmedge.quant.quantize.layer_error import dequantize
from vlmedge.quant.quantize.plan import LayerPlan
from vlmedge.quant.quantize.stage_quantizer import StageQuantizer
from vlmedge.quant.recipe.recipe import LinearRecipe
from vlmedge.quant.rounding.activations import LayerInput

SIZE, OUT = 64, 48
INT8 = LinearRecipe("int8", shift="off")
FLOAT = LinearRecipe()


class Stage:
    """norm - first - (half of its rows) - second, and what calibration sees of both inputs."""

    def __init__(self, seed=0):
        generator = np.random.default_rng(seed)
        self.tensors = {
            "norm.weight": generator.uniform(0.5, 2, SIZE).astype(np.float32),
            "norm.bias": generator.standard_normal(SIZE, np.float32),
            "first.weight": generator.standard_normal((2 * OUT, SIZE), np.float32),
            "first.bias": generator.standard_normal(2 * OUT, np.float32),
            "second.weight": generator.standard_normal((OUT, OUT), np.float32),
        }
        self.tensors["norm.weight"][5] *= 100  # an outlier channel
        mixing = generator.standard_normal((SIZE, SIZE), np.float32) / 8
        x = generator.standard_normal((400, SIZE), np.float32) @ mixing  # correlated channels
        self.first = x * self.tensors["norm.weight"] + self.tensors["norm.bias"]
        rows = self.first @ self.tensors["first.weight"].T + self.tensors["first.bias"]
        self.second = rows[:, OUT:]

    def read(self, name):
        return self.tensors[name].copy()

    def folds(self):
        return {
            "first": Fold(np.arange(SIZE), vectors=("norm.weight", "norm.bias")),
            "second": Fold(np.arange(OUT), rows=("first", OUT)),
        }

    def plans(self, first, second):
        made = []
        for name, recipe, bias in (("first", first, "first.bias"), ("second", second, None)):
            rows, columns = self.tensors[f"{name}.weight"].shape
            linear = Linear(name, "s", "/n/M", "x", "y", f"{name}.weight", bias, rows, columns)
            made.append(LayerPlan(linear, "vision", recipe, "recipe"))
        return made

    def inputs(self):
        seen = {}
        for name, x in (("first", self.first), ("second", self.second)):
            seen[name] = LayerInput(x.shape[1], 1, with_moments=True)
            seen[name].update(x)
        return seen


@pytest.fixture(scope="module")
def stage():
    return Stage()


def quantize(stage, first, second=FLOAT, *, inputs=None, known=None, folds=None):
    quantizer = StageQuantizer(stage, stage.folds() if folds is None else folds)
    seen = stage.inputs() if inputs is None else inputs
    return quantizer.quantize(stage.plans(first, second), seen, known or {})


def compute(linear, x, scales):
    """What a static int8 layer makes of its float input, from its numbers alone."""
    if scales is not None:
        x = x / scales  # as the norm does after folding
    if linear.shift is not None:
        x = x - linear.shift
    levels = np.clip(np.rint(x / np.float32(linear.input_scale)), -128, 127)
    y = (levels * np.float32(linear.input_scale)) @ dequantize(linear, x.shape[1]).T
    return y if linear.bias is None else y + linear.bias


def error_of(got, needed):
    return np.linalg.norm(got - needed) / np.linalg.norm(needed)


def test_an_outlier_channel_is_moved_into_the_weights(stage):
    needed = stage.first @ stage.tensors["first.weight"].T + stage.tensors["first.bias"]
    errors = {}
    for smooth in ("search", "off"):
        result = quantize(stage, dataclasses.replace(INT8, smooth=smooth))
        scales = result.scales.get("first")
        errors[smooth] = error_of(compute(result.linears["first"], stage.first, scales), needed)
        assert (scales is None) == (smooth == "off")
    assert errors["search"] < errors["off"] / 2
    assert errors["search"] < 0.03


def test_scales_are_powers_of_two_and_the_norm_is_divided_by_them(stage):
    result = quantize(stage, INT8)
    scales = result.scales["first"]
    np.testing.assert_array_equal(np.log2(scales), np.rint(np.log2(scales)))
    assert scales[5] == scales.max() > 1
    assert set(result.replaced) == {"norm.weight", "norm.bias"}
    for name, array in result.replaced.items():
        np.testing.assert_array_equal(array, stage.tensors[name] / scales)
    migrated = stage.tensors["first.weight"] * scales
    assert error_of(dequantize(result.linears["first"], SIZE), migrated) < 0.03


def test_a_float_layer_is_divided_where_the_next_ones_scales_fold_into_it(stage):
    result = quantize(stage, FLOAT, INT8)
    assert set(result.linears) == {"second"}
    scales = result.scales["second"]
    assert set(result.replaced) == {"first.weight", "first.bias"}
    for name, array in result.replaced.items():
        np.testing.assert_array_equal(array[:OUT], stage.tensors[name][:OUT])
        divisor = scales.reshape(-1, *[1] * (array.ndim - 1))
        np.testing.assert_array_equal(array[OUT:], stage.tensors[name][OUT:] / divisor)
    assert set(result.errors) == {"second"}


def test_a_quantized_layer_has_the_next_ones_scales_in_its_rows(stage):
    result = quantize(stage, INT8, INT8)
    first, second = result.scales["first"], result.scales["second"]
    needed = stage.tensors["first.weight"] * first
    needed[OUT:] /= second[:, None]
    error = error_of(dequantize(result.linears["first"], SIZE), needed)
    assert error < 0.03
    np.testing.assert_array_equal(
        result.linears["first"].bias[OUT:], stage.tensors["first.bias"][OUT:] / second
    )


def test_nothing_is_migrated_where_nothing_folds(stage):
    result = quantize(stage, INT8, INT8, folds={})
    assert result.scales == {}
    assert result.replaced == {}
    assert result.errors["first"].strength is None


def test_a_shift_halves_what_a_lopsided_input_costs():
    stage = Stage(1)
    stage.first = np.maximum(stage.first, -0.2)  # as behind a GELU
    stage.first[:, ::2] += 3
    needed = stage.first @ stage.tensors["first.weight"].T + stage.tensors["first.bias"]
    errors = {}
    for shift in ("search", "off"):
        recipe = LinearRecipe("int8", smooth="off", shift=shift)
        linear = quantize(stage, recipe).linears["first"]
        assert (linear.shift is None) == (shift == "off")
        errors[shift] = error_of(compute(linear, stage.first, None), needed)
    assert errors["search"] < 0.7 * errors["off"]


def test_a_layer_without_bias_is_never_shifted(stage):
    shifted = LinearRecipe("int8", smooth="off", shift="search")
    assert quantize(stage, shifted, shifted).linears["second"].shift is None


@pytest.mark.parametrize("recipe", [INT8, LinearRecipe("int8"), LinearRecipe("fp8")])
def test_known_calibration_gives_the_same_numbers_as_the_data_it_was_made_of(stage, recipe):
    seen = quantize(stage, recipe, recipe)
    known = quantize(stage, recipe, recipe, inputs={}, known=seen.calibration)
    assert known.errors == {}
    for name, linear in seen.linears.items():
        again = known.linears[name]
        assert again.input_scale == linear.input_scale
        for array in ("codes", "scales", "bias", "shift"):
            np.testing.assert_array_equal(getattr(again, array), getattr(linear, array))
    for name, array in seen.replaced.items():
        np.testing.assert_array_equal(known.replaced[name], array)


def test_what_is_seen_goes_before_what_is_known(stage):
    other = Stage(7)
    known = quantize(other, INT8).calibration
    both = quantize(stage, INT8, known=known)
    alone = quantize(stage, INT8)
    assert both.linears["first"].input_scale == alone.linears["first"].input_scale


@pytest.mark.parametrize(
    "change", [{"format": "fp8"}, {"ranges": "entropy"}, {"smooth": 0.25}, {"shift": "search"}]
)
def test_known_calibration_of_another_question_is_refused(stage, change):
    known = quantize(stage, INT8).calibration
    other = dataclasses.replace(INT8, **change)
    with pytest.raises(ValueError, match=r"layer first: the calibration file has no .*--data"):
        quantize(stage, other, inputs={}, known=known)


def test_statistics_alone_answer_a_recipe_without_migration_and_shift(stage):
    known = quantize(stage, INT8).calibration
    plain = LinearRecipe("fp8", ranges="minmax", smooth="off")
    linear = quantize(stage, plain, inputs={}, known=known).linears["first"]
    np.testing.assert_allclose(linear.input_scale, np.abs(stage.first).max() / 448, rtol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (INT8, "static scales need calibration: give --data or --calibration"),
        (LinearRecipe("fp8"), "static scales need calibration"),
        (LinearRecipe("int4-weight", "awq", 16), "--data"),
        (LinearRecipe("int4-weight", "gptq", 16), "--data"),
        (LinearRecipe("int4-weight", "awq+gptq", 16), "--data"),
    ],
)
def test_nothing_is_calibrated_without_having_been_seen(stage, recipe, words):
    with pytest.raises(ValueError, match=f"layer second: .*{words}"):
        quantize(stage, FLOAT, recipe, inputs={})


def test_a_rounding_that_looks_at_activations_needs_them_again(stage):
    recipe = LinearRecipe("int8", "gptq", shift="off")
    known = quantize(stage, recipe).calibration
    with pytest.raises(ValueError, match=r"layer first: .*--data"):
        quantize(stage, recipe, inputs={}, known=known)


@pytest.mark.parametrize("format", ["int8-dynamic", "int8-weight", "int4-weight"])
def test_formats_without_static_scales_need_nothing(stage, format):
    recipe = LinearRecipe(format, block_size=16)
    result = quantize(stage, recipe, recipe, inputs={})
    assert result.calibration == result.errors == result.replaced == {}
    limit = 0.12 if format == "int4-weight" else 0.01
    for name, linear in result.linears.items():
        matrix = stage.tensors[f"{name}.weight"]
        assert error_of(dequantize(linear, matrix.shape[1]), matrix) < limit


@pytest.mark.parametrize("format", ["int8-weight", "int4-weight"])
@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_calibrated_roundings_beat_the_nearest_on_what_was_seen(stage, format, method):
    recipe = LinearRecipe(format, method, 32)
    result = quantize(stage, recipe, recipe)
    nearest = quantize(stage, LinearRecipe(format, block_size=32))
    needed = stage.first @ stage.tensors["first.weight"].T
    scales = result.scales.get("first", np.float32(1))
    matrix = dequantize(result.linears["first"], SIZE)
    second = result.scales.get("second", np.ones(OUT, np.float32))
    undone = np.concatenate([np.ones(OUT, np.float32), second])
    got = (stage.first / scales) @ matrix.T * undone
    plain = stage.first @ dequantize(nearest.linears["first"], SIZE).T
    assert error_of(got, needed) < 0.9 * error_of(plain, needed)


def test_weights_that_are_no_numbers_name_their_layer():
    stage = Stage()
    stage.tensors["second.weight"][3, 4] = np.inf
    for recipe in (LinearRecipe("int8-weight"), INT8):
        with pytest.raises(ValueError, match="layer second: the weights hold NaN or infinite"):
            quantize(stage, FLOAT, recipe)


def test_calibration_of_another_size_is_told_and_not_stretched(stage):
    seen = LayerInput(SIZE // 2, 1, with_moments=False)
    seen.update(np.ones((3, SIZE // 2), np.float32))
    known = quantize(stage, INT8).calibration["first"]
    smaller = LayerCalibration(seen.stats, dataclasses.replace(known.range, scales=None))
    with pytest.raises(ValueError, match="layer first: "):
        quantize(stage, INT8, inputs={}, known={"first": smaller})
    half = known.range.scales[: SIZE // 2]
    smaller = LayerCalibration(seen.stats, dataclasses.replace(known.range, scales=half))
    with pytest.raises(ValueError, match="layer first: "):
        quantize(stage, INT8, inputs={}, known={"first": smaller})
    shifted = LinearRecipe("int8", smooth="off")
    found = quantize(stage, shifted).calibration["first"]
    one = dataclasses.replace(found.range, shift=np.ones(1, np.float32))
    seen = LayerInput(1, 1, with_moments=False)
    seen.update(np.ones((3, 1), np.float32))
    with pytest.raises(ValueError, match="layer first: "):
        quantize(stage, shifted, inputs={}, known={"first": LayerCalibration(seen.stats, one)})


METHODS = ["nearest", "awq", "gptq", "awq+gptq"]


@pytest.mark.parametrize("format", ["int8-weight", "int4-weight"])
@pytest.mark.parametrize("method", METHODS)
def test_block_scales_are_positive_where_asked_for_or_implied_by_the_layout(stage, format, method):
    signed = LinearRecipe(format, method, 64)
    asked = dataclasses.replace(signed, block_scales="positive")
    implied = dataclasses.replace(signed, layout="qdq")
    made = {recipe: quantize(stage, recipe, recipe).linears for recipe in (signed, asked, implied)}
    for name in ("first", "second"):
        assert (made[signed][name].scales < 0).any()
        assert (made[asked][name].scales > 0).all()
        for array in ("codes", "scales"):
            np.testing.assert_array_equal(
                getattr(made[asked][name], array), getattr(made[implied][name], array)
            )


@pytest.mark.parametrize("block_scales", ["signed", "positive"])
def test_awq_chooses_channels_for_the_block_scales_that_follow(stage, monkeypatch, block_scales):
    asked = []
    search = layer_quantizer.awq.search_scales

    def record(*arguments, **options):
        asked.append(options["positive"])
        return search(*arguments, **options)

    monkeypatch.setattr(layer_quantizer.awq, "search_scales", record)
    recipe = LinearRecipe("int4-weight", "awq", 64, block_scales=block_scales)
    quantize(stage, recipe, recipe)
    assert asked == [block_scales == "positive"] * 2
