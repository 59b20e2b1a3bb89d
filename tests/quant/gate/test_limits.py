"""One limit at a time: what passes, what fails, and what the data can't tell."""

import dataclasses
import re

import pytest

from vlmedge.quant.compare.findings import CheckResult, SettingFinding, SpeedFinding
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.limits import find_undecidable
from vlmedge.quant.gate.statistics import score_task
from vlmedge.quant.gate.verdict import judge

SAME = (SettingFinding("tokens.eos", "[2]", "[2]"),)
EMPTY = CheckResult("ours", "theirs", "data", "0" * 64, 1, {}, settings=SAME)


def score(name, n, lost=0, won=0):
    reference = [1.0] * lost + [0.0] * won + [1.0] * (n - lost - won)
    got = [0.0] * lost + [1.0] * won + [1.0] * (n - lost - won)
    return score_task(name, "exact_match", reference, got)


def judge_tasks(text, *tasks):
    rows = judge(dataclasses.replace(EMPTY, tasks=tasks), parse_gate(text)).rows
    (row,) = [row for row in rows if row.level == "tasks"]
    return row


STRICT = "[tasks]\nloss_max = {}\nnon_inferior = true"


def test_a_loss_of_12_points_on_8_examples_passes_no_limit_of_half_a_point():
    """What `beyond_noise` let pass: one of 8 answers lost, in an interval that holds 0."""
    task = score("receipt", 8, lost=1)
    assert task.loss == 12.5
    assert task.is_noise
    assert judge_tasks("[tasks]\nloss_max = 0.5", task).state == "failed"
    row = judge_tasks(STRICT.format(0.5), task)
    assert row.state == "undecided"
    assert row.detail.startswith("loss +12.50, -24.00 to +47.09, 8 examples; it takes about ")
    assert row.detail.endswith(" such examples to fail")


@pytest.mark.parametrize(
    ("n", "lost", "won", "limit", "state"),
    [
        (8, 0, 0, 0.5, "undecided"),  # equal answers, too few to say so
        (8, 0, 0, 33.0, "passed"),
        (120, 0, 0, 3.0, "undecided"),  # 3.84 / 123.84 is 3.1 %
        (120, 0, 0, 3.2, "passed"),
        (765, 0, 0, 0.5, "passed"),
        (760, 0, 0, 0.5, "undecided"),
        (1000, 20, 15, 2.0, "passed"),  # the estimate is 0.5
        (1000, 20, 15, 1.0, "undecided"),
        (1000, 80, 10, 5.0, "failed"),
        (1000, 60, 10, 5.0, "undecided"),  # at the limit
        (40, 38, 0, 50.0, "failed"),
    ],
)
def test_non_inferior_means_the_whole_interval(n, lost, won, limit, state):
    row = judge_tasks(STRICT.format(limit), score("t", n, lost, won))
    assert row.state == state
    assert (row.got <= limit) == (state == "passed")
    assert "worse end of the 95 % interval" in row.meaning


def test_the_number_of_examples_that_would_decide_is_named():
    row = judge_tasks(STRICT.format(0.5), score("t", 8))
    assert row.detail == (
        "loss +0.00, -32.44 to +32.44, 8 examples; it takes about 770 such examples to pass"
    )
    row = judge_tasks(STRICT.format(5.0), score("t", 1000, 60, 10))
    assert row.detail.endswith("the loss is too near the limit for any number of examples to tell")


def test_a_plain_loss_is_that_of_these_examples_and_says_how_far_others_may_differ():
    row = judge_tasks("[tasks]\nloss_max = 0.5", score("t", 8))
    assert (row.state, row.got) == ("passed", 0)
    assert row.detail == "of these 8 examples; 95 % interval -32.44 to +32.44"


def test_the_worst_task_decides_and_is_named():
    text = "[tasks]\nworst_loss_max = 5\nnon_inferior = true"
    good, few, bad = score("good", 500), score("few", 20), score("bad", 500, lost=60)
    assert judge_tasks(text, good).state == "passed"
    row = judge_tasks(text, good, few)
    assert (row.state, row.detail.partition(",")[0]) == ("undecided", "few")
    row = judge_tasks(text, good, few, bad)
    assert (row.state, row.detail.partition(",")[0]) == ("failed", "bad")


def test_too_few_examples_of_a_task_decide_nothing_but_a_clear_failure():
    plain = "[tasks]\nloss_max = 50\nmin_examples = 30"
    row = judge_tasks(plain, score("a", 30), score("b", 29))
    assert row.state == "undecided"
    assert row.detail == "b has 29: at least 30 examples of each task are asked for"
    assert judge_tasks(plain, score("a", 30)).state == "passed"
    # With its own minimum, and in the form that knows a clear failure
    own = "[tasks.b]\nloss_max = 50\nmin_examples = 20"
    own = f"[tasks]\nworst_loss_max = 50\nmin_examples = 30\n{own}"
    result = dataclasses.replace(EMPTY, tasks=(score("a", 30), score("b", 29)))
    states = {row.key: row.state for row in judge(result, parse_gate(own)).rows}
    assert states["tasks.b.loss_max"] == "passed"
    assert states["tasks.worst_loss_max"] == "undecided"
    strict = STRICT.format(5) + "\nmin_examples = 30"
    assert judge_tasks(strict, score("a", 20, lost=18)).state == "failed"


@pytest.mark.parametrize(
    ("text", "counts", "message"),
    [
        (STRICT.format(0.5), {"a": 8}, "it takes about 770 such examples to pass even if all"),
        (STRICT.format(0.5), {"a": 400, "b": 400}, None),
        (STRICT.format(0.0), {"a": 10_000}, "too near the limit .* even if all answers are equal"),
        ("[tasks]\nloss_max = 0.5", {"a": 1}, None),
        ("[tasks]\nscore_min = 5\nmin_examples = 9", {"a": 8, "b": 9}, "a has 8: at least 9"),
        (
            "[tasks]\nworst_loss_max = 5\nnon_inferior = true",
            {"a": 20, "b": 500},
            "a: it takes about 73",
        ),
        ("[text]\nexact_match_min = 1", {"a": 1}, None),
    ],
)
def test_data_that_no_bundle_could_pass_with_is_known_beforehand(text, counts, message):
    whys = [find_undecidable(counts, limit) for limit in parse_gate(text).limits]
    why = next((why for why in whys if why), None)
    if message is None:
        assert why is None
    else:
        assert why is not None
        assert re.search(message, why)


def judge_speed(got, reference, limit):
    speed = (SpeedFinding("vision", "ms", reference, got),)
    result = dataclasses.replace(EMPTY, speed=speed)
    return judge(result, parse_gate(f"[speed]\nvision_max = {limit}")).rows[1]


def test_speed_passes_and_fails_by_its_interval():
    steady, doubled = (10.0, 10.1, 9.9, 10.0, 10.0), (20.0, 20.1, 20.2, 19.9, 20.0)
    assert judge_speed(steady, steady, 1.05).state == "passed"
    assert judge_speed(doubled, steady, 1.05).state == "failed"
    assert judge_speed(steady, doubled, 1.0).state == "passed"


def test_a_machine_that_is_too_noisy_decides_nothing_and_says_how_many_runs_would():
    noisy, steady = (7.0, 14.0, 9.0, 11.0, 8.0), (10.0, 10.0, 10.0, 10.0, 10.0)
    row = judge_speed(noisy, steady, 1.05)
    assert row.state == "undecided"
    assert "no difference" in row.detail
    assert "runs to tell" in row.detail


def test_one_run_decides_nothing():
    row = judge_speed((5.0,), (10.0,), 1.0)
    assert row.state == "undecided"
    assert "one run: no spread is known" in row.detail
