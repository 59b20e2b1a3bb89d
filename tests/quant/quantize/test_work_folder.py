"""Finished stages on the disk: whole ones only, and only of the same quantization."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest

from vlmedge.quant.graph.linears import Linear
from vlmedge.quant.quantize.calibration import LayerCalibration
from vlmedge.quant.quantize.input_range import InputRange
from vlmedge.quant.quantize.layer_error import LayerError
from vlmedge.quant.quantize.linear_nodes import QuantizedLinear
from vlmedge.quant.quantize.plan import LayerPlan
from vlmedge.quant.quantize.stage_quantizer import StageResult
from vlmedge.quant.quantize.work_folder import WorkFolder
from vlmedge.quant.recipe.recipe import LinearRecipe
from vlmedge.quant.rounding.activations import LayerInput

RECIPE = LinearRecipe("int8")
NAMES = ("model.layers.0.self_attn.q_proj+k_proj+v_proj", "model.layers.0.mlp.down_proj")
PARTS = ("recipe", "model", "data")


def make_plans():
    return {
        name: LayerPlan(
            Linear(name, "s", "/n/MatMul", "x", "y", f"{name}.weight", bias, 6, 4),
            "decoder",
            RECIPE,
            "recipe",
        )
        for name, bias in zip(NAMES, ("bias", None), strict=True)
    }


def make_result():
    generator = np.random.default_rng(0)
    seen = LayerInput(4, 1, with_moments=False)
    seen.update(generator.standard_normal((50, 4), np.float32))
    scales = 2.0 ** np.arange(4, dtype=np.float32)
    found = InputRange(
        *("int8", "mse", 99.99, "search", "search"),
        amax=1.25,
        shift=generator.standard_normal(4, np.float32),
        strength=0.5,
        scales=scales,
        error=0.01,
        error_without=0.1,
    )
    linears = {
        name: QuantizedLinear(
            RECIPE,
            generator.integers(-127, 128, (6, 4), np.int8),
            generator.random(6, np.float32),
            0.01 / 3,
            bias,
            None if bias is None else generator.standard_normal(4, np.float32),
        )
        for name, bias in zip(NAMES, (generator.random(6, np.float32), None), strict=True)
    }
    return StageResult(
        linears=linears,
        replaced={"norm.weight": generator.random(4, np.float32)},
        calibration={
            NAMES[0]: LayerCalibration(seen.stats, found),
            "model.layers.0.self_attn.cache.key": LayerCalibration(seen.stats),
        },
        errors={NAMES[0]: LayerError(0.01, 0.1, 0.5), NAMES[1]: LayerError(0.1 / 3, 0.2, None)},
        scales={NAMES[0]: scales},
    )


def assert_same(got, needed):
    assert got.errors == needed.errors
    for part in ("replaced", "scales"):
        assert set(getattr(got, part)) == set(getattr(needed, part))
        for name, array in getattr(needed, part).items():
            np.testing.assert_array_equal(getattr(got, part)[name], array)
    assert set(got.linears) == set(needed.linears)
    for name, linear in needed.linears.items():
        found = got.linears[name]
        assert (found.recipe, found.input_scale) == (linear.recipe, linear.input_scale)
        for array in ("codes", "scales"):
            np.testing.assert_array_equal(getattr(found, array), getattr(linear, array))
            assert getattr(found, array).dtype == getattr(linear, array).dtype
        for array in ("bias", "shift"):
            if getattr(linear, array) is None:
                assert getattr(found, array) is None
            else:
                np.testing.assert_array_equal(getattr(found, array), getattr(linear, array))
    assert set(got.calibration) == set(needed.calibration)
    for name, calibration in needed.calibration.items():
        stats = got.calibration[name].stats
        assert stats.to_dict() == calibration.stats.to_dict()
        assert (got.calibration[name].range is None) == (calibration.range is None)
    (found, needed_range) = (got.calibration[NAMES[0]].range, needed.calibration[NAMES[0]].range)
    for field in dataclasses.fields(InputRange):
        one, other = getattr(found, field.name), getattr(needed_range, field.name)
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def work(tmp_path):
    return WorkFolder(tmp_path / "bundle", *PARTS)


def test_a_stage_comes_back_bit_for_bit(work):
    result = make_result()
    assert not work.has("decoder.model.layers.0")
    work.save("decoder.model.layers.0", result)
    assert work.has("decoder.model.layers.0")
    assert not work.has("vision.model.layers.0")
    assert_same(work.load("decoder.model.layers.0", make_plans()), result)


def test_another_run_of_the_same_finds_it_and_any_other_does_not(work, tmp_path):
    work.save("stage", make_result())
    assert WorkFolder(tmp_path / "bundle", *PARTS).has("stage")
    others = [("other", *PARTS[1:]), ("recipe", "other", "data"), (*PARTS[:2], "other")]
    for parts in (*others, ("recipemodel", "", "data"), ("rec", "ipe", "model", "data")):
        assert not WorkFolder(tmp_path / "bundle", *parts).has("stage")
    assert not WorkFolder(tmp_path / "bundle2", *PARTS).has("stage")


def test_what_other_recipes_left_is_removed_and_other_bundles_work_is_not(work, tmp_path):
    work.save("stage", make_result())
    other = WorkFolder(tmp_path / "bundle", "other")
    other.save("stage", make_result())
    alike = [WorkFolder(tmp_path / name) for name in ("bundle2", "bundle.quantize-x", "my-bundle")]
    for folder in alike:
        folder.save("stage", make_result())
    other.remove_others()
    assert not work.path.exists()
    assert all(folder.has("stage") for folder in (other, *alike))


def test_a_finished_quantization_leaves_nothing(work, tmp_path):
    work.remove()  # nothing there yet
    work.save("stage", make_result())
    work.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("num_files", [0, 1, 5])
def test_a_stage_that_could_not_be_written_is_not_there(work, monkeypatch, error, num_files):
    save, count = np.save, []

    def fail(path, array):
        count.append(path)
        if len(count) > num_files:
            raise error
        save(path, array)

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(type(error)):
        work.save("stage", make_result())
    assert not work.has("stage")
    assert os.listdir(work.path) == []
    monkeypatch.undo()
    work.save("stage", make_result())  # and once there is room again it goes on
    assert_same(work.load("stage", make_plans()), make_result())


def test_half_a_stage_of_a_killed_run_is_written_anew(work):
    partial = work.path / "stage.partial"
    partial.mkdir(parents=True)
    (partial / "leftover.npy").write_bytes(b"half")
    assert not work.has("stage")
    work.save("stage", make_result())
    assert "leftover.npy" not in os.listdir(work.path / "stage")
    assert os.listdir(work.path) == ["stage"]


@pytest.mark.parametrize("name", ["stage.json", f"{NAMES[0]}.codes.npy", f"{NAMES[0]}.shift.npy"])
@pytest.mark.parametrize("damage", ["empty", "cut", "missing"])
def test_a_damaged_stage_says_what_to_remove(work, name, damage):
    work.save("stage", make_result())
    path = work.path / "stage" / name
    if damage == "missing":
        path.unlink()
    else:
        size = 0 if damage == "empty" else path.stat().st_size - 3
        os.truncate(path, size)
    with pytest.raises(ValueError, match=r"damaged.*remove .*quantize again"):
        work.load("stage", make_plans())


def test_a_stage_with_another_content_is_damaged_too(work):
    work.save("stage", make_result())
    path = work.path / "stage" / "stage.json"
    for content in (1, [], {}, {"input_scales": {"no such layer": 1}}):
        path.write_text(json.dumps(content))
        for is_old in (True, False):
            with pytest.raises(ValueError, match="damaged"):
                work.load("stage", make_plans(), is_old=is_old)


def list_saved(work):
    work.save("stage", make_result())
    return sorted((work.path / "stage").iterdir())


def test_one_flipped_bit_of_an_earlier_run_is_found_in_every_file(work):
    for path in list_saved(work):
        content = path.read_bytes()
        place = content.index(b'"shifted') + 1 if path.suffix == ".json" else len(content) - 1
        for at in {place, len(content) - 3}:
            flipped = bytearray(content)
            flipped[at] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=r"damaged.*remove .*quantize again"):
                work.load("stage", make_plans(), is_old=True)
        path.write_bytes(content)
    assert_same(work.load("stage", make_plans(), is_old=True), make_result())
