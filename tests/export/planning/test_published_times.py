"""Estimates against times that others published, and the factors against a fit to them."""

import math
from pathlib import Path

import check_plan
import pytest

from vlmedge.export.planning.devices import DEVICES, GIB
from vlmedge.export.planning.model_shapes import Matrix
from vlmedge.export.planning.roofline import FITTED

ROOT = Path(__file__).parents[3]
# Rows that are known to be off, and said to be in docs/planning.md
KNOWN = {
    ("orin-nx-16gb", "INT4", "ViT, 265 tokens"),
    ("thor", "INT4", "prefill 292"),
    ("thor", "NVFP4", "prefill 2048"),
}


@pytest.fixture(scope="module")
def rows():
    return check_plan.make_rows()


def key(row):
    return row.device, row.weights, row.phase


def test_the_published_models_have_their_published_sizes():
    """2.1 B parameters of Qwen3-VL-2B, its head tied; 3.09 B in the decoder of Qwen2.5-VL-3B."""
    qwen3 = check_plan.make_qwen3_vl_2b()
    total = qwen3.count_parameters(tied=True)
    assert total == pytest.approx(2.127e9, rel=0.01)
    decoder = [m for m in check_plan.make_qwen2_5_vl_3b().decoder if isinstance(m, Matrix)]
    assert sum(m.num_weights for m in decoder) == pytest.approx(3.086e9, rel=0.01)


def test_every_board_and_both_models_are_there(rows):
    assert {row.device for row in rows} == set(check_plan.BOARDS)
    assert {row.model for row in rows} == {"Qwen3-VL-2B", "Qwen2.5-VL-3B"}
    assert len({(row.source, *key(row)) for row in rows}) == len(rows)


def test_estimates_are_within_30_percent_but_for_the_rows_that_are_known(rows):
    off = {
        key(row)
        for row in rows
        if abs(check_plan.estimate_ms(row, FITTED) / row.published - 1) > 0.3
    }
    assert off == KNOWN


def test_a_board_is_estimated_by_the_others(rows):
    """Factors fitted without a board: the median stays small, the few that are off are few."""
    others = check_plan.fit_without(rows)
    errors = sorted(
        abs(check_plan.estimate_ms(row, others[check_plan.BOARDS[row.device]]) / row.published - 1)
        for row in rows
    )
    assert errors[len(errors) // 2] < 0.15
    assert sum(error > 0.3 for error in errors) <= 3


def test_the_factors_are_those_of_the_fit(rows):
    fitted = check_plan.fit(rows)
    assert FITTED.memory == pytest.approx(fitted.memory, abs=0.01)
    assert FITTED.matrix == pytest.approx(fitted.matrix, abs=0.01)
    assert FITTED.launch_us == pytest.approx(fitted.launch_us, abs=0.5)


def test_the_fit_finds_factors_that_are_planted(rows):
    planted = check_plan.Factors(memory=0.7, matrix=0.4, launch_us=9.0)
    made = [
        check_plan.dataclasses.replace(row, published=check_plan.estimate_ms(row, planted))
        for row in rows
    ]
    found = check_plan.fit(made)
    for name in ("memory", "matrix", "launch_us"):
        assert math.isclose(getattr(found, name), getattr(planted, name), rel_tol=0.02)


def test_the_tables_of_the_document_are_those_that_are_printed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["check_plan.py"])
    assert check_plan.main() == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(printed) > 35
    document = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8").splitlines()
    for line in printed:
        assert line in document, "run python scripts/check_plan.py and take its tables over"


def test_the_document_names_the_factors_and_every_board():
    document = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    wanted = f"({FITTED.matrix:.2f} x rate), bytes / ({FITTED.memory:.2f} x bandwidth)"
    assert wanted in document
    for device in DEVICES.values():
        (row,) = (row for row in document.splitlines() if row.startswith(f"| `{device.name}`"))
        rates = f"{device.half / 1e12:.1f} / {device.int8 / 1e12:.1f}"
        assert rates in row or f"{device.half / 1e12:.0f} / {device.int8 / 1e12:.0f}" in row
        assert f"| {device.memory_bytes / GIB:.1f}; " in row  # test_free_memory has what is free
        assert f", {device.free_bytes / GIB:.1f} GiB |" in row
