"""Values that float16 can't hold are found by layer, where the CPU's own numbers hide them.

The oracle is numpy's float16: what is told to overflow is infinite there.
"""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.selfcheck import check_bundle
from vlmedge.quant.examples import Example
from vlmedge.quant.value_range import (
    computes_in_float16,
    describe_near,
    describe_overflow,
    draw_examples,
    measure_ranges,
)
from vlmedge.runtime import cli
from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.manifest import read_manifest

SAMPLES = Path(__file__).parents[2] / "samples"
LAYER = "model.layers.1.mlp"


def scale_mlp(checkpoint, power, layers=(0, 1, 2, 3)):
    """up_proj * 2^power, down_proj / 2^power: the same model in float32, to the bit."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for i in layers:
        for part, sign in (("up_proj", 1), ("down_proj", -1)):
            name = f"model.layers.{i}.mlp.{part}.weight"
            scaled = tensors[name].astype(np.float32) * np.float32(2.0) ** (sign * power)
            tensors[name] = scaled.astype(ml_dtypes.bfloat16)
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture(scope="module")
def lower(tmp_path_factory):
    """lower(power, dtype, layers): the sample with scaled MLPs, for a target; made once each."""
    made = {}

    def make(power, dtype="fp16", layers=(0, 1, 2, 3), target="jetpack-6.2"):
        key = (power, dtype, layers, target)
        if key not in made:
            folder = tmp_path_factory.mktemp("range")
            shutil.copytree(SAMPLES / "reader", folder / "reader")
            scale_mlp(folder / "reader", power, layers)
            context = 256 if target != "jetpack-6.2" else None
            options = LoweringOptions(target, dtype, context)
            export_for_target(str(folder / "reader"), folder / "bundle", options)
            made[key] = folder
        return made[key]

    return make


def measure(folder, examples=None):
    manifest = read_manifest(folder / "bundle")
    return measure_ranges(folder / "bundle", manifest, examples or draw_examples(), num_threads=1)


@pytest.mark.parametrize("target", ["jetpack-6.2", "tensorrt-11"])
def test_a_layer_over_the_range_is_named_and_only_it(lower, target):
    ranges = measure(lower(13, layers=(1,), target=target))
    over = [finding for finding in ranges if finding.overflows]
    assert over
    assert {finding.graph for finding in over} == {"decoder"}
    assert all(finding.layer.startswith(LAYER) for finding in over)
    assert LAYER in describe_overflow(ranges)
    assert np.isinf(np.float16(np.float32(over[0].largest)))


def test_what_numpy_makes_infinite_in_float16_is_what_is_told(lower):
    """One MLP on inputs of the size that norms give, by definition, in both types."""
    folder = lower(13, layers=(1,))
    tensors = load_file(folder / "reader" / "model.safetensors")
    up = tensors[f"{LAYER}.up_proj.weight"].astype(np.float32)
    gate = tensors[f"{LAYER}.gate_proj.weight"].astype(np.float32)
    scale = tensors["model.layers.1.post_attention_layernorm.weight"].astype(np.float32)
    x = np.random.default_rng(0).standard_normal((64, up.shape[1]), np.float32) * scale
    a, b = x @ gate.T, x @ up.T
    hidden = a / (1 + np.exp(-a)) * b
    with np.errstate(over="ignore"):
        is_infinite = (
            np.isinf(hidden.astype(np.float16)).any() or np.isinf(b.astype(np.float16)).any()
        )
    assert is_infinite
    assert any(finding.overflows for finding in measure(folder))


def test_the_plain_sample_is_well_within(lower):
    assert measure(lower(0)) == ()


def test_what_comes_near_the_end_is_told_and_no_failure(lower):
    """Some power of two puts the largest value between half the range and its end."""
    found = set()
    for power in range(8, 14):
        ranges = measure(lower(power, layers=(1,)))
        found.add((describe_overflow(ranges) is not None, describe_near(ranges) is not None))
    assert (False, True) in found
    assert (False, False) in found


def test_the_example_with_the_largest_value_is_named(lower):
    picture = Image.open(SAMPLES / "pictures" / "receipt-0.png")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Total?"}]
    example = Example("receipt", ({"role": "user", "content": content},))
    ranges = measure(lower(13), [example])
    assert {finding.example for finding in ranges} == {"receipt"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_other_types_hold_the_same_values(lower, dtype):
    folder = lower(13, dtype)
    assert not computes_in_float16(read_manifest(folder / "bundle"))
    check_bundle(folder / "bundle")


def test_the_selfcheck_fails_by_the_layers_name(lower):
    with pytest.raises(BundleError, match=r"over float16's 65504 in model\.layers\.\d\.mlp.*bf16"):
        check_bundle(lower(13) / "bundle")
    check_bundle(lower(0) / "bundle")


def test_check_fails_whatever_the_gate_and_without_one(lower, tmp_path, capsys):
    folder = lower(13)
    export_checkpoint(folder / "reader", tmp_path / "float")
    data = tmp_path / "d.jsonl"
    picture = SAMPLES / "pictures" / "receipt-0.png"
    data.write_text(
        f'{{"question": "What is the total?", "image": "{picture}", "answer": "26.29"}}'
    )
    args = ["--against", str(tmp_path / "float"), "--data", str(data), "--levels", "texts"]
    assert cli.main(["check", str(folder / "bundle"), *args]) == 1
    assert "over float16's 65504 in model.layers" in capsys.readouterr().err
    assert cli.main(["check", str(lower(0) / "bundle"), *args]) == 0
    assert "float16" not in capsys.readouterr().err


def test_an_export_in_float16_says_that_ranges_were_not_tried(tmp_path, capsys):
    args = ["export", str(SAMPLES / "reader"), str(tmp_path / "b"), "--target", "jetpack-6.2"]
    assert cli.main([*args, "--dtype", "fp16"]) == 0
    assert "--selfcheck does with drawn pictures" in capsys.readouterr().err
    assert cli.main([*args, "--dtype", "fp16", "--selfcheck"]) == 0
    assert "float16" not in capsys.readouterr().err
