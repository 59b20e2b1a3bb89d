"""Rows of a sweep as a table, JSON and CSV."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import pytest

from vlmedge.quant.compare.findings import (
    CheckResult,
    EmbeddingFinding,
    LogitFinding,
    SettingFinding,
    SpeedFinding,
    TaskFinding,
)
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.sweep.run import SweepResult, SweepRow
from vlmedge.quant.sweep.schedule import Candidate
from vlmedge.quant.sweep.table import make_csv, make_json, print_sweep, write_sweep

GATE = parse_gate("[tasks]\nloss_max = 1.0\n[logits]\nkl_max = 0.5\n")


def make_row(recipe, got, **changes):
    result = CheckResult(
        bundle=recipe or "older",
        reference="float",
        data="data.jsonl",
        data_sha256="ab" * 32,
        num_examples=30,
        skipped={},
        settings=(SettingFinding("tokens.eos", "[2]", "[2]"),),
        embeddings=(EmbeddingFinding("image_embeds", "a", "56x56", 0.99, 30.0, 0.1, 0.0125),),
        logits=(LogitFinding("a", (0.25, 0.75), (1.0, 1.0), (1.0, 1.0), None),),
        tasks=(
            TaskFinding(
                "receipt", "anls", 10, 90.0, got, got - 91.0, got - 88.0, (90 - got) / 10, 0.0, 1.0
            ),
            TaskFinding("bars, tall", "exact_match", 20, 80.0, 80.0, -16.0, 16.0, 0.0, 0.0, 0.0),
        ),
        environment={"machine": "Linux x86_64"},
    )
    result = dataclasses.replace(result, **changes)
    name = f"float/{recipe}" if recipe else "older"
    candidate = Candidate(
        name, "float" if recipe else "", recipe, Path("/b") / name, "/float", (), (), None
    )
    quantize_s = 12.345 if recipe else None
    verdict = judge(result, GATE) if result.tasks and result.logits else None
    return SweepRow(candidate, 250_000, 1_000_000, quantize_s, 3.5, result, verdict)


@pytest.fixture
def found():
    data = DataSet(
        "data.jsonl",
        "ab" * 32,
        tuple(Example(f"e/{i}", ()) for i in range(30)),
        {"bad/1": "no picture"},
    )
    rows = (make_row("orin", 89.0), make_row("cpu", 80.0), make_row(None, 90.0, tasks=()))
    return SweepResult(data, rows, {"check/float/slow/0-of-2": "it was killed"})


def test_json_holds_scores_gates_and_measures(found):
    content = make_json(found)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert (content["num_examples"], content["skipped"]) == (30, {"bad/1": "no picture"})
    assert content["failed"] == {"check/float/slow/0-of-2": "it was killed"}
    orin, cpu, older = content["bundles"]
    assert (orin["bundle"], orin["recipe"], orin["bytes"]) == ("float/orin", "orin", 250_000)
    # means over tasks: (90 + 80) / 2 and (89 + 80) / 2
    assert orin["mean"]["reference"] == 85
    assert orin["mean"]["got"] == 84.5
    assert orin["mean"]["difference"] == -0.5
    assert orin["mean"]["low"] < -0.5 < 0 < orin["mean"]["high"]
    assert orin["tasks"][0]["difference"] == -1
    assert orin["measures"]["logits.kl"] == 0.75
    assert orin["measures"]["logits.kl_mean"] == 0.5
    assert orin["measures"]["image_embeds.rel_l2"] == 0.0125
    assert not any(key.startswith("speed.") for key in orin["measures"])
    assert orin["measures"]["logits.first_divergence"] is None  # infinity: no example parts
    assert (orin["passed"], orin["state"]) == (False, "failed")  # for its logits
    assert orin["undecided_limits"] == []
    assert cpu["passed"] is False
    assert len(cpu["failed_limits"]) == 2
    assert older["mean"] is None
    assert (older["passed"], older["quantize_s"]) == (None, None)


def test_csv_has_a_line_a_task_and_one_for_their_mean(found):
    lines = list(csv.DictReader(io.StringIO(make_csv(found))))
    assert [(line["bundle"], line["task"]) for line in lines] == [
        ("float/orin", "receipt"),
        ("float/orin", "bars, tall"),
        ("float/orin", "mean"),
        ("float/cpu", "receipt"),
        ("float/cpu", "bars, tall"),
        ("float/cpu", "mean"),
        ("older", ""),
    ]
    first = lines[0]
    assert (first["metric"], first["num_examples"], first["passed"]) == ("anls", "10", "False")
    numbers = [float(first[key]) for key in ("reference", "got", "difference", "low", "high")]
    assert numbers == [90, 89, -1, -2, 1]
    assert (first["bytes"], first["quantize_s"], first["check_s"]) == ("250000", "12.35", "3.5")
    assert float(lines[2]["got"]) == 84.5
    assert lines[6]["quantize_s"] == lines[6]["got"] == ""


def test_the_table_shows_what_was_measured_and_nothing_else(found, capsys):
    print_sweep(found)
    out = capsys.readouterr().out
    head, *rows = [line.split() for line in out.splitlines() if line.strip() and "──" not in line][
        1:
    ]
    assert "30 examples of data.jsonl" in out
    assert "vision" not in head
    assert "decode" not in head
    # one source: recipes are enough of a name
    assert [row[0] for row in rows] == ["orin", "cpu", "older"]
    assert "25.0%" in rows[0]
    assert "84.50" in rows[0]
    assert "~-0.50" in rows[0]  # within noise
    assert "~-5.00" in rows[1]  # one of 10 receipts lost: as good as nothing
    assert "1.25%" in rows[0]
    assert "FAIL" in rows[0]
    assert rows[2].count("FAIL") == 0
    assert max(map(len, out.splitlines())) <= 160


def test_speed_is_shown_where_it_was_measured(found, capsys):
    speed = (SpeedFinding("decode", "ms a token", (4.0, 4.1), (1.0, 1.0)),)
    row = dataclasses.replace(
        found.rows[0], result=dataclasses.replace(found.rows[0].result, speed=speed)
    )
    print_sweep(dataclasses.replace(found, rows=(row, *found.rows[1:])))
    assert " 0.25x" in capsys.readouterr().out
    noisy = (SpeedFinding("decode", "ms a token", (4.0, 4.1), (9.0, 1.0)),)
    row = dataclasses.replace(row, result=dataclasses.replace(row.result, speed=noisy))
    print_sweep(dataclasses.replace(found, rows=(row,)))
    assert " ~0.74x" in capsys.readouterr().out


def test_a_gate_that_is_not_decided_is_no_pass(found, capsys):
    gate = parse_gate("[tasks]\nloss_max = 1\nnon_inferior = true")
    row = dataclasses.replace(found.rows[0], verdict=judge(found.rows[0].result, gate))
    found = dataclasses.replace(found, rows=(row,))
    print_sweep(found)
    assert " undecided " in capsys.readouterr().out
    (content,) = make_json(found)["bundles"]
    assert (content["passed"], content["state"]) == (False, "undecided")
    assert "to pass" in content["undecided_limits"][0]


def test_a_sweep_without_a_complete_bundle_has_an_empty_table(found, capsys):
    empty = dataclasses.replace(found, rows=())
    print_sweep(empty)
    assert "30 examples" in capsys.readouterr().out
    assert make_json(empty)["bundles"] == []
    assert len(make_csv(empty).splitlines()) == 1


def test_numbers_that_json_lacks_become_null(found):
    logits = (LogitFinding("a", (math.nan,), (1.0,), (1.0,), 0),)
    row = make_row("orin", 90.0, logits=logits)
    content = make_json(dataclasses.replace(found, rows=(row,)))
    assert content["bundles"][0]["measures"]["logits.kl"] is None
    json.dumps(content, allow_nan=False)


def test_files_are_written_whole(found, tmp_path):
    write_sweep(tmp_path, found)
    assert json.loads((tmp_path / "sweep.json").read_text()) == make_json(found)
    assert (tmp_path / "sweep.csv").read_text() == make_csv(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.json"]
