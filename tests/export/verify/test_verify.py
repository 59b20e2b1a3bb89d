"""The comparison with transformers: passes what is right, by precision, and fails what is wrong."""

import dataclasses
import json
import math
import re
import sys

import numpy as np
import pytest

from vlmedge.export.verify import tolerance, verify
from vlmedge.export.verify.tolerance import (
    Difference,
    Tolerance,
    choose_tolerance,
    measure_difference,
)
from vlmedge.export.verify.verify import VerifyReport, print_report, verify_bundle
from vlmedge.quant.rounding.weight_only import pack_rows, unpack_rows
from vlmedge.runtime.cli import main as cli

SIZES = ((60, 90), (120, 60), (84, 84))


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8", "int4"])
def test_every_precision_of_a_right_bundle_passes(make_bundle, weights):
    made = make_bundle("tiny-7b", weights)
    report = verify_bundle(made.checkpoint, made.bundle, image_sizes=SIZES)
    assert report.passed
    requests = list(dict.fromkeys(row.request for row in report.rows))
    assert requests == ["all", "60x90", "120x60", "84x84", "3 pictures", "text"]
    if weights == "fp32":
        tokens = [row.detail for row in report.rows if row.what == "greedy tokens"]
        assert tokens == ["16 of 16 equal"] * 5


def test_another_checkpoints_bundle_fails_whatever_its_precision(make_bundle):
    right, wrong = make_bundle("tiny", "int4"), make_bundle("tiny", "int4", seed=1)
    report = verify_bundle(right.checkpoint, wrong.bundle, image_sizes=SIZES[:1], num_tokens=1)
    failed = {row.what for row in report.rows if not row.ok}
    assert failed == {"image embeddings", "logits"}
    assert not report.passed


def test_a_tolerance_below_the_rounding_fails(make_bundle):
    made = make_bundle("tiny", "int8")
    report = verify_bundle(
        made.checkpoint, made.bundle, image_sizes=SIZES[:1], num_tokens=2, float_tolerance=1e-4
    )
    assert not report.passed


def test_the_table_names_what_is_too_far(capsys):
    row = verify.VerifyRow(
        "logits", "text", Difference(0.5, 0.4, 0.9), Tolerance("max abs", 1e-4), "1 step", False
    )
    print_report(VerifyReport("bundle", (row,)))
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert re.search(r"text +logits +0\.5 +0\.4 +0\.9.* max abs 0\.0001 .*TOO FAR", shown)


def test_a_figure_that_is_no_number_is_null_in_json():
    row = verify.VerifyRow(
        "logits", "text", Difference(math.nan, math.inf, 0.9), Tolerance("max abs", 1), "", False
    )
    content = verify.report_to_dict(VerifyReport("bundle", (row,)))
    assert json.loads(json.dumps(content, allow_nan=False))["passed"] is False
    assert content["rows"][0]["difference"] == {"max_abs": None, "rel_l2": None, "cosine": 0.9}


@pytest.mark.parametrize(("sizes", "num_tokens"), [((), 4), (SIZES, 0)])
def test_nothing_to_compare_is_an_error(make_bundle, sizes, num_tokens):
    made = make_bundle("tiny")
    with pytest.raises(ValueError, match="needed one of each"):
        verify_bundle(made.checkpoint, made.bundle, image_sizes=sizes, num_tokens=num_tokens)


def test_nan_is_never_within_a_tolerance():
    needed = np.ones(4, np.float32)
    difference = measure_difference(np.array([1, np.nan, 1, 1], np.float32), needed)
    for measure in ("max abs", "rel L2"):
        assert not difference.is_within(Tolerance(measure, math.inf))


def test_differences_are_measured_against_the_reference():
    needed = np.array([3.0, -4.0], np.float32)  # root mean square sqrt(12.5), norm 5
    difference = measure_difference(needed + np.float32(0.5), needed)
    assert difference.max_abs == pytest.approx(0.5 / math.sqrt(12.5))
    assert difference.rel_l2 == pytest.approx(math.sqrt(0.5) / 5)
    assert difference.cosine == pytest.approx(24.5 / (5 * math.hypot(3.5, 3.5)))
    small = measure_difference(np.full(2, 0.5), np.full(2, 0.25))
    assert small.max_abs == 0.25  # below 1 the scale stays 1


def test_the_coarsest_weights_set_the_tolerance():
    assert choose_tolerance(["float32"]) == Tolerance("max abs", 1e-4)
    assert choose_tolerance(["float32", "float16"]).limit == 5e-3
    int8, int4 = choose_tolerance(["int8 block 64"]), choose_tolerance(["int4 block 64"])
    assert int8.limit < int4.limit == choose_tolerance(["int8 block 64", "int4 block 64"]).limit
    assert int4.limit < choose_tolerance(["int4 block 128"]).limit < math.sqrt(2)


@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64)])
def test_the_noise_of_one_rounding_is_predicted(bits, block_size):
    # 5 %: the extreme of n normal values is known to second order.
    rows = np.random.default_rng(0).standard_normal((256, 1024), np.float32)
    rounded = unpack_rows(*pack_rows(rows, bits, block_size), bits, 1024)
    measured = measure_difference(rounded, rows).rel_l2
    predicted = tolerance.predict_noise(bits, block_size) / tolerance.NUM_ROUNDINGS
    both = predicted if bits == 4 else predicted / math.sqrt(2)  # activations add as much at 8 bits
    assert measured == pytest.approx(both, rel=0.05)


def test_the_command_exits_with_1_when_the_comparison_fails(make_bundle, tmp_path, monkeypatch):
    made = make_bundle("tiny")
    args = ["export", str(made.checkpoint), str(tmp_path / "bundle"), "--verify"]
    passing = verify.verify_bundle
    failing = dataclasses.replace(VerifyReport("bundle", ()), rows=())

    def verify_quickly(checkpoint, bundle, adapters):
        return passing(checkpoint, bundle, image_sizes=SIZES[:1], num_tokens=1, adapters=adapters)

    monkeypatch.setattr(verify, "verify_bundle", verify_quickly)
    assert cli.main(args) == 0
    monkeypatch.setattr(VerifyReport, "passed", property(lambda self: False))
    monkeypatch.setattr(verify, "verify_bundle", lambda *_, **__: failing)
    assert cli.main(args) == 1


def test_a_missing_extra_is_told_before_anything_is_written(
    make_bundle, tmp_path, monkeypatch, capsys
):
    made = make_bundle("tiny")
    for name in ("verify.verify", "verify.reference"):
        monkeypatch.delitem(sys.modules, f"vlmedge.export.{name}")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["export", str(made.checkpoint), str(tmp_path / "new"), "--verify"]) == 1
    assert "pip install 'vlmedge[verify]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
