import dataclasses
import json
import re

import pytest

from vlmedge.quant.check.terminal import print_check
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.report.blame_lines import list_blame
from vlmedge.quant.report.result_json import to_json

GATE = """
image_embeds.cosine_min = -1
image_embeds.rel_l2_max = 0.05
tasks.worst_loss_max = 0.5
"""


@pytest.fixture
def show(capsys):
    def show(result, gate=None):
        print_check(result, judge(result, parse_gate(gate)) if gate else None)
        return capsys.readouterr().out

    return show


def test_a_failing_bundle_is_shown_with_what_failed_and_who_is_guilty(show, broken_check):
    shown = show(broken_check, GATE)
    assert re.search(r"^reader-2b-orin against reader-2b-fp32: \d+ examples of held-out", shown)
    assert "1 skipped" in shown
    assert re.search(r"image_embeds\.cosine_min .* ok ", shown)
    assert re.search(r"image_embeds\.rel_l2_max +\S+ +<= 0\.05 +FAILED", shown)
    assert "guilty" not in shown  # no trial has said so
    suspect = r"^suspect by its own error \(not measured\): "
    assert re.search(suspect + r"visual\.blocks\.3\.mlp\.fc2 \(int8 static, ", shown, re.MULTILINE)
    assert shown.rstrip().splitlines()[-1].startswith("FAILED: ")


def test_a_passing_bundle_says_so_and_blames_nobody(show, good_check):
    shown = show(good_check, "image_embeds.cosine_min = 0.5")
    assert shown.rstrip().endswith("PASSED")
    assert "guilty" not in shown


def test_without_a_gate_there_are_measurements_alone(show, good_check):
    shown = show(good_check)
    for word in ("before_merger", "logits", "receipt", "peak_memory", "own"):
        assert word in shown or word == "own"
    assert "PASSED" not in shown
    assert "FAILED" not in shown


def test_levels_that_were_not_compared_are_not_shown(show, good_check):
    bare = dataclasses.replace(
        good_check, embeddings=(), logits=(), texts=(), tasks=(), speed=(), skipped={}
    )
    shown = show(bare)
    assert "layers" in shown
    for word in ("image_embeds", "logits", "scores", "speed", "skipped"):
        assert word not in shown


def test_many_suspects_are_counted(show, broken_check):
    broken = tuple(dataclasses.replace(finding, own_sqnr_db=1.0) for finding in broken_check.layers)
    shown = show(dataclasses.replace(broken_check, layers=broken), GATE)
    assert shown.count("suspect by ") == 9
    assert re.search(r"suspect by .*: \d+ more layers", shown)


def test_unusual_layers_are_named_though_every_limit_holds(show, broken_check):
    line = r"^unusual for its precision: visual\.blocks\.3\.mlp\.fc2 \(int8 static, "
    for gate in ("image_embeds.cosine_min = -1", None):
        shown = show(broken_check, gate)
        assert re.search(line, shown, re.MULTILINE)
        assert "suspect" not in shown
        assert "guilty" not in shown
    raw = json.loads(to_json(broken_check))
    assert "visual.blocks.3.mlp.fc2" in [finding["layer"] for finding in raw["unusual"]]


def test_an_unusual_layer_is_first_among_many_guilty_ones(show, broken_check):
    verdict = judge(broken_check, parse_gate("layers.own_sqnr_db_min = 190"))
    worst = dataclasses.replace(verdict.guilty[0], layer="worst", own_sqnr_db=-1.0)
    verdict = dataclasses.replace(verdict, guilty=(worst, *verdict.guilty))
    first, _, third, *_ = list_blame(verdict, 3)
    assert first.startswith("guilty: visual.blocks.3.mlp.fc2 ")
    assert first.endswith("), unusual for its precision")
    assert third.startswith("guilty: worst ")
    assert "unusual" not in third


def test_a_layer_of_the_decoder_is_unusual_and_no_suspect_where_pictures_fail(show, broken_check):
    layers = tuple(
        dataclasses.replace(finding, own_sqnr_db=1.0) if finding.layer == "lm_head" else finding
        for finding in broken_check.layers
    )
    shown = show(dataclasses.replace(broken_check, layers=layers), "image_embeds.rel_l2_max = 1e-9")
    assert "unusual for its precision: lm_head " in shown
    assert "suspect by its own error (not measured): visual.blocks.3.mlp.fc2 " in shown
