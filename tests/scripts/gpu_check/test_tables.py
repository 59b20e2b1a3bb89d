"""Markdown tables: every row as wide as its head, the ratios the right way round."""

import pytest
from gpu_check.figures import Row
from gpu_check.record import StepRecord
from gpu_check.tables import (
    make_ceilings_table,
    make_comparison_table,
    make_engines_table,
    make_shares_table,
    make_steps_table,
    make_times_table,
)

OURS = Row("vlmedge fp16", {448: 2.0, 1092: 8.0}, 4.0, 0.5, {448: 0.25}, 0.5, 0.75)
PEER = Row("transformers fp16", {448: 6.0, 1092: 8.0}, 8.0, 10.0, {}, None, None)
ALONE = Row("torch, matrices alone", {}, None, 0.25, {}, None, 0.5)


def read(table):
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    assert {len(row) for row in rows} == {len(rows[0])}
    head, _, *body = ([cell.strip() for cell in row] for row in rows)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def test_times_are_given_as_speed_too():
    rows = read(make_times_table([OURS, ALONE], 512))
    ours = rows["vlmedge fp16"]
    assert ours["ViT 1092x1092 ms"] == "8.00"
    assert ours["prefill tok/s"] == "128,000"
    assert ours["decode tok/s"] == "2,000.0"
    assert rows["torch, matrices alone"]["prefill tok/s"] == ""


def test_above_one_is_faster_than_transformers():
    rows = read(make_shares_table([OURS, PEER, ALONE]))
    ours = rows["vlmedge fp16"]
    assert (ours["ViT 448 x transformers"], ours["prefill x"], ours["decode x"]) == (
        "3.00",
        "2.00",
        "20.00",
    )
    assert ours["decode / bandwidth"] == "0.75"
    assert ours["ViT 1092 / matrix rate"] == ""
    assert rows["transformers fp16"]["decode x"] == "1.00"


def test_without_transformers_there_are_no_ratios_to_it():
    assert read(make_shares_table([OURS]))["vlmedge fp16"]["decode x"] == ""


@pytest.mark.parametrize(("status", "within"), [("ok", "yes"), ("failed", "**no**")])
def test_a_comparison_beyond_its_limit_is_marked(status, within):
    figures = {
        "image_embeds_error": 0.0012,
        "logits_error": 0.2,
        "limit": 0.05,
        "equal_tokens": 10,
        "tokens": 12,
    }
    rows = read(
        make_comparison_table({"sample.int8.compare": StepRecord("", status, 1, "", figures)})
    )
    assert rows == {
        "int8": {
            "image embeddings": "0.0012",
            "logits": "0.2",
            "allowed": "0.05",
            "equal tokens": "10 of 12",
            "within": within,
        }
    }


def test_refused_and_built_engines_share_a_table():
    built = {"seconds": {"vision": 1.0, "decoder": 2.5}, "bytes": {"vision": 2**20}}
    figures = {"8.6": {"refused": "no FP8"}, "12.0": built | {"peak_bytes": 2**30}}
    table = make_engines_table({"model.fp8.engines": StepRecord("", "ok", 9, "", figures)})
    lines = table.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "refused" in lines[2]
    assert "1.0 | 3.5 | 1,024" in lines[3]


def test_ceilings_name_what_could_not_be_measured():
    figures = {
        "bytes_per_s": {"driver": 3.0e12},
        "flops_per_s": {"fp16": 8e14},
        "errors": {"fp8": "not here"},
    }
    rows = read(make_ceilings_table(figures))
    assert rows["copy on the device, driver"]["measured"] == "3,000 GB/s"
    assert rows["matrix product, fp16"]["measured"] == "800 T/s"
    assert rows["fp8"]["measured"] == "not measured: not here"


def test_steps_without_a_result_are_told_with_their_reason():
    records = {
        "a": StepRecord("a", "ok", 1.0),
        "b": StepRecord("b", "failed", 1.0, "x | y"),
    }
    rows = read(make_steps_table(records, ["a", "b", "c"]))
    assert rows == {
        "b": {"status": "failed", "reason": "x / y"},
        "c": {"status": "not run", "reason": ""},
    }
    assert make_steps_table(records, ["a"]) == ""
