import dataclasses
import re

import pytest

from vlmedge.quant.check_report import print_check
from vlmedge.quant.gate import parse_gate
from vlmedge.quant.verdict import judge

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
