"""Values that float16 can't hold are found by layer, where the CPU's own numbers hide them.

The oracle is numpy's float16: what is told to overflow is infinite there.
"""

import json
import math
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image
from plant_faults import plant_overflow
from safetensors.numpy import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.verify.selfcheck import check_bundle
from vlmedge.quant.check.value_range import (
    choose_findings,
    computes_in_float16,
    describe_near,
    describe_overflow,
    draw_examples,
    measure_ranges,
)
from vlmedge.quant.compare.findings import CheckResult, RangeFinding
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.graph.feeds import make_prompts
from vlmedge.quant.sweep.merge import merge_checks
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.errors import BundleError

SAMPLES = Path(__file__).parents[3] / "samples"
LAYER = "model.layers.1.mlp"


def scale_attention(checkpoint, power, layer=1):
    """q and k * 2^power: scores * 4^power, each of the two well within float16."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for part in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
        name = f"model.layers.{layer}.self_attn.{part}"
        scaled = tensors[name].astype(np.float32) * np.float32(2.0) ** power
        tensors[name] = scaled.astype(ml_dtypes.bfloat16)
    save_file(tensors, path, {"format": "pt"})


def lower_checkpoint(checkpoint, bundle, target, dtype="fp16"):
    context = 256 if target != "jetpack-6.2" else None
    export_for_target(str(checkpoint), bundle, LoweringOptions(target, dtype, context))


@pytest.fixture(scope="module")
def lower(tmp_path_factory):
    """lower(power, dtype, layers): the sample with scaled MLPs, for a target; made once each."""
    made = {}

    def make(power, dtype="fp16", layers=(0, 1, 2, 3), target="jetpack-6.2"):
        key = (power, dtype, layers, target)
        if key not in made:
            folder = tmp_path_factory.mktemp("range")
            mlps = [f"model.layers.{i}.mlp" for i in layers]
            plant_overflow(SAMPLES / "reader", folder / "reader", mlps, power)
            lower_checkpoint(folder / "reader", folder / "bundle", target, dtype)
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


def test_transformers_has_the_same_largest_products_and_answers_token_0_in_float16(lower):
    """Tolerance: float16 weights of a bfloat16 checkpoint are the same numbers, sums differ."""
    folder = lower(13)
    prompt = draw_examples()[0]
    (made,) = make_prompts(folder / "bundle", read_manifest(folder / "bundle"), [prompt])
    length = len(made.request.input_ids)
    assert len(made.answer_ids) > 8
    token_ids = np.concatenate([made.request.input_ids, made.answer_ids])
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder / "reader", dtype="float32")
    needed = []
    for layer in model.model.language_model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, args: needed.append(args[0][0].abs().amax(dim=1).numpy())
        )
    ids = torch.from_numpy(token_ids)[None]
    with torch.no_grad():
        model(input_ids=ids)
        in_float16 = model.half()(input_ids=ids).logits[0, -1]
    assert in_float16.isnan().all()
    assert int(in_float16.argmax()) == 0
    products = {f.layer: f.largest for f in measure(folder, [prompt]) if "/mlp/Mul" in f.tensor}
    assert list(products) == [f"model.layers.{i}.mlp" for i in range(4)]
    largest = [rows.max() for rows in needed[:3]]
    largest.append(needed[3][length - 1 :].max())  # no other rows reach the last MLP on a device
    np.testing.assert_allclose(list(products.values()), largest, rtol=1e-3)


def test_of_the_plain_sample_only_the_largest_is_told_and_is_well_within(lower):
    (largest,) = measure(lower(0))
    assert not largest.overflows
    assert not largest.is_near
    assert 1 < largest.largest < 1000  # no mask, which goes far below on purpose


@pytest.mark.parametrize("target", ["jetpack-6.2", "tensorrt-11"])
def test_scores_over_the_range_are_found_where_attention_is_one_node_too(tmp_path, target):
    shutil.copytree(SAMPLES / "reader", tmp_path / "reader")
    scale_attention(tmp_path / "reader", 8)
    lower_checkpoint(tmp_path / "reader", tmp_path / "bundle", target)
    over = [finding for finding in measure(tmp_path) if finding.overflows]
    assert over
    assert all(finding.layer.startswith("model.layers.1.attn") for finding in over)
    assert any("scores" in finding.tensor for finding in over)


def test_masked_scores_are_not_taken_for_values_near_the_end(tmp_path):
    shutil.copytree(SAMPLES / "reader", tmp_path / "reader")
    scale_attention(tmp_path / "reader", 5)
    lower_checkpoint(tmp_path / "reader", tmp_path / "bundle", "jetpack-6.2")
    (largest,) = measure(tmp_path)
    assert 2752 < largest.largest < 32752  # less 30000, of the mask, it would be near
    assert not largest.is_near


def find(layer, largest, tensor="t"):
    return RangeFinding("decoder", layer, tensor, largest, "a")


def test_what_is_near_or_over_is_kept_in_order_and_else_the_largest():
    findings = [find("a", 9.0), find("b", 4e4), find("c", math.inf), find("d", math.nan)]
    assert [finding.layer for finding in choose_findings(findings)] == ["b", "c", "d"]
    assert [finding.overflows for finding in findings] == [False, False, True, True]
    assert choose_findings([find("a", 9.0), find("b", 3.0)]) == (find("a", 9.0),)
    assert choose_findings([]) == ()


def test_a_sweeps_parts_keep_the_largest_of_each_tensor():
    data = DataSet("d", "0" * 64, (Example("a", ()), Example("b", ())), {})
    parts = [
        CheckResult("x", "y", "d", "0" * 64, 1, {}, ranges=ranges)
        for ranges in ((find("l", 5.0), find("m", 70000.0, "u")), (find("l", 9.0),))
    ]
    assert merge_checks(parts, (), data, ()).ranges == (find("l", 9.0), find("m", 70000.0, "u"))


def test_calibration_names_the_layers_whose_inputs_float16_cannot_hold(lower, tmp_path, capsys):
    export_checkpoint(lower(13, layers=(1,)) / "reader", tmp_path / "float")
    plain = 'format = "int8"\nranges = "minmax"\nsmooth = "off"\nshift = "off"\n'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'name = "quick"\n[vision]\n{plain}[decoder]\n{plain}')
    args = ["--data", write_data(tmp_path), "--recipe", str(recipe), "--threads", "1"]
    assert cli.main(["quantize", str(tmp_path / "float"), str(tmp_path / "q"), *args]) == 0
    told = capsys.readouterr().err
    assert f"what goes into {LAYER}.down_proj, over float16's 65504" in told


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


def write_data(folder):
    data = folder / "d.jsonl"
    picture = SAMPLES / "pictures" / "receipt-0.png"
    data.write_text(
        f'{{"question": "What is the total?", "image": "{picture}", "answer": "26.29"}}'
    )
    return str(data)


@pytest.mark.parametrize("gate", [None, "[text]\nexact_match_min = 0.0\n"])
def test_check_fails_whatever_the_gate_and_without_one(lower, tmp_path, capsys, gate):
    folder = lower(13)
    export_checkpoint(folder / "reader", tmp_path / "float")
    args = ["--against", str(tmp_path / "float"), "--data", write_data(tmp_path)]
    args += ["--levels", "texts", "--report", str(tmp_path / "report")]
    if gate:
        (tmp_path / "gate.toml").write_text(gate)
        args += ["--gate", str(tmp_path / "gate.toml")]
    assert cli.main(["check", str(folder / "bundle"), *args]) == 1
    told = capsys.readouterr()
    assert "over float16's 65504 in model.layers" in told.err
    assert "float16.largest" in told.out
    assert "FAILED" in told.out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["passed"] is False
    assert [row["state"] for row in report["limits"] if row["level"] == "float16"] == ["failed"]
    (suite,) = (
        ET.parse(tmp_path / "report" / "junit.xml").getroot().iterfind("testsuite[@name='float16']")
    )
    (failure,) = suite.iter("failure")
    html = (tmp_path / "report" / "report.html").read_text()
    top = html[: html.index("<nav")]
    assert "May not ship" in top
    for i in range(4):
        assert f"model.layers.{i}.mlp" in failure.text
        assert f"model.layers.{i}.mlp" in top
    assert cli.main(["check", str(lower(0) / "bundle"), *args]) == 0
    assert "float16's" not in capsys.readouterr().err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["passed"] is (True if gate else None)
    assert report["result"]["ranges"][0]["largest"] < 1000


def test_an_export_in_float16_says_that_ranges_were_not_tried(tmp_path, capsys):
    args = ["export", str(SAMPLES / "reader"), str(tmp_path / "b"), "--target", "jetpack-6.2"]
    assert cli.main([*args, "--dtype", "fp16"]) == 0
    assert "--selfcheck does with drawn pictures" in capsys.readouterr().err
    assert cli.main([*args, "--dtype", "fp16", "--selfcheck"]) == 0
    assert "float16" not in capsys.readouterr().err
