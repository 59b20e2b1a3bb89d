"""The report's headline, limits, scores, speed and coverage, in words."""

import dataclasses

import pytest

from vlmedge.quant.compare.findings import CheckResult, SettingFinding, SpeedFinding, TaskFinding
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.report.sections import (
    coverage_section,
    environment_section,
    gate_section,
    make_headline,
    settings_section,
    speed_section,
    task_section,
)
from vlmedge.runtime.bundle.manifest import CoverageEntry

GATE = parse_gate("[layers]\nown_sqnr_db_min = 15\n[speed]\nvision_max = 1\n[tasks]\nloss_max = 90")


def cells(section, item=0):
    return [[cell.text for cell in row] for row in section.items[item].rows]


def test_the_headline_of_a_failure_counts_limits_and_names_the_guilty(broken_check):
    headline = make_headline(broken_check, judge(broken_check, GATE))
    assert (headline.state, headline.badge) == ("fail", "FAIL")
    assert headline.title == "May not ship: 1 of 4 limits fails"
    assert [point.partition(" ")[0] for point in headline.points] == [
        "visual.blocks.3.mlp.fc2",
        "visual.blocks.5.mlp.fc2",
    ]
    assert ("skipped", "1 example") in headline.facts


def test_the_headline_of_a_pass_says_so(good_check):
    headline = make_headline(good_check, judge(good_check, GATE))
    assert (headline.state, headline.title) == ("pass", "May ship: all 4 limits hold")
    assert headline.points == ()
    one = parse_gate("[speed]\nvision_max = 1")
    assert make_headline(good_check, judge(good_check, one)).title.endswith("all 2 limits hold")


def test_the_headline_of_a_pass_names_unusual_layers(broken_check):
    verdict = judge(broken_check, parse_gate("[image_embeds]\ncosine_min = -1"))
    headline = make_headline(broken_check, verdict)
    assert (headline.state, headline.points) == ("pass", ())
    assert headline.note.startswith("Unusual for their precision: visual.blocks.3.mlp.fc2 (int8 st")


def test_without_a_gate_nothing_is_judged(good_check):
    assert make_headline(good_check, None).state == "none"
    assert gate_section(None) == []


def test_a_failure_without_a_guilty_layer_says_why(good_check):
    failing = parse_gate("[image_embeds]\ncosine_min = 1")
    spread = make_headline(good_check, judge(good_check, failing))
    assert "No layer stands out" in spread.note
    bare = dataclasses.replace(good_check, layers=())
    assert "not compared" in make_headline(bare, judge(bare, failing)).note
    slow = parse_gate("[speed]\nvision_max = 0.1")
    assert make_headline(bare, judge(bare, slow)).note == ""


def test_a_long_list_of_guilty_layers_is_cut(broken_check):
    bad = tuple(dataclasses.replace(f, own_sqnr_db=3.0) for f in broken_check.layers)
    result = dataclasses.replace(broken_check, layers=bad)
    points = make_headline(result, judge(result, GATE)).points
    num_layers = len({finding.layer for finding in bad})
    assert len(points) == 9
    assert points[-1] == f"and {num_layers - 8} more"


def test_failed_limits_come_first(broken_check):
    (section,) = gate_section(judge(broken_check, GATE))
    rows = cells(section)
    assert [(row[0], row[3]) for row in rows] == [
        ("layers.own_sqnr_db_min", "fails"),
        ("settings.differences_max", "holds"),
        ("tasks.loss_max", "holds"),
        ("speed.vision_max", "holds"),
    ]
    assert rows[0][2] == "≥ 15 dB"
    assert rows[3][1:3] == ["0.6469", "≤ 1"]


@pytest.mark.parametrize(
    ("reference", "got", "low", "high", "word"),
    [
        (90, 89, -3, 1, "within noise"),
        (90, 80, -14, -6, "a loss"),
        (80, 90, 6, 14, "a gain"),
    ],
)
def test_a_score_is_said_to_be_noise_a_loss_or_a_gain(reference, got, low, high, word):
    tasks = (TaskFinding("receipt", "anls", 50, reference, got, low, high, 1.0, 1.0, 2.0),)
    (section,) = task_section(CheckResult("a", "b", "c", "d", 50, {}, tasks=tasks))
    assert cells(section)[0][5] == word
    assert section.items[1].kind == "figure"


def test_answers_lost_and_won_are_counted(broken_check):
    (section,) = task_section(broken_check)
    for row in cells(section):
        texts = [text for text in broken_check.texts if text.task == row[0]]
        lost = sum(text.got_score < text.reference_score for text in texts)
        assert row[6].startswith(f"{lost} lost, ")


def test_partial_scores_have_no_mcnemar_test(good_check):
    texts = tuple(
        dataclasses.replace(text, reference_score=0.5, got_score=0.25) for text in good_check.texts
    )
    (section,) = task_section(dataclasses.replace(good_check, texts=texts))
    assert all(row[6] == "12 lost, 0 won" for row in cells(section))


@pytest.mark.parametrize(
    ("what", "got", "word"),
    [
        ("vision", (50, 50), "2.00 times faster"),
        ("vision", (150, 150), "1.50 times slower"),
        ("peak_memory", (25, 25), "4.00 times less"),
        ("peak_memory", (200, 200), "2.00 times more"),
        ("vision", (100.2, 100.2), "the same"),
        ("vision", (90, 120), "no difference"),
        ("vision", (50, 150), "no difference"),
        ("vision", (0, 0), ""),
    ],
)
def test_speed_is_said_in_words(what, got, word):
    (section,) = speed_section((SpeedFinding(what, "ms", (100, 100), got),))
    assert cells(section)[0][5] == word


def test_figures_of_speed_have_their_spread(good_check):
    row = cells(speed_section(good_check.speed)[0])[0]
    assert row[:4] == ["vision", "412 ms [410 to 430]", "268 ms [266 to 275]", "0.65"]
    assert row[4] == "0.63 to 0.66"
    (section,) = speed_section((SpeedFinding("vision", "ms", (100.0,), (50.0,)),))
    assert cells(section)[0][4:] == ["one run", ""]


def test_settings_that_differ_stand_before_all_of_them():
    settings = (SettingFinding("tokens.eos", "[2]", "[5]"), SettingFinding("mrope_rule", "p", "p"))
    (section,) = settings_section(settings)
    assert section.texts == ("1 of 2 settings differs: the two sides answer by other rules.",)
    assert cells(section) == [["tokens.eos", "[2]", "[5]", "differs"]]
    assert [row[3] for row in cells(section, 1)] == ["differs", "equal"]
    (section,) = settings_section(settings[1:])
    assert len(section.items) == 1
    assert settings_section(()) == []


def test_a_gate_that_is_not_decided_has_a_headline_of_its_own(good_check):
    gate = parse_gate("[tasks]\nloss_max = 1\nnon_inferior = true")
    verdict = judge(good_check, gate)
    headline = make_headline(good_check, verdict)
    assert (headline.state, headline.badge) == ("open", "UNDECIDED")
    assert headline.title == "Not decided: 1 of 2 limits needs more data"
    assert "such examples" in headline.points[0]
    assert [row[3] for row in cells(gate_section(verdict)[0])] == ["undecided", "holds"]
    # On a phone beside the limit's name, as "fails" and "holds" are
    assert gate_section(verdict)[0].items[0].rows[0][3].style == "open"


def test_coverage_is_counted_and_listed_with_reasons():
    entries = [
        CoverageEntry(f"visual.blocks.{i}.mlp.fc1", "linear", "vision", "int8 static", "recipe")
        for i in range(3)
    ]
    entries.append(CoverageEntry("lm_head", "linear", "decoder", "float32", "pattern lm_head"))
    (section,) = coverage_section(entries)
    assert cells(section) == [["linear", "int8 static", "3"], ["linear", "float32", "1"]]
    assert len(cells(section, 1)) == 4
    assert cells(section, 1)[3] == ["lm_head", "linear", "float32", "pattern lm_head"]
    assert section.items[1].summary


def test_skipped_examples_are_told_with_their_reasons(good_check):
    (section,) = environment_section(good_check)
    assert cells(section, 1) == [["receipt/9999", "picture receipts/9999.png is missing"]]


def test_what_was_not_measured_has_no_section():
    empty = CheckResult("a", "b", "c", "d", 0, {})
    assert task_section(empty) == speed_section(()) == coverage_section(()) == []
    assert environment_section(empty) == []
