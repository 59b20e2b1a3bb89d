"""Show the rows of a sweep: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from ...runtime.terminal.console import format_bytes, print_table
from ...runtime.terminal.tables import Column
from ..compare.findings import CheckResult
from ..files.atomic import write_text
from ..files.grammar import counted
from ..gate.metrics import METRICS, select_findings
from ..gate.statistics import mean_interval
from .run import SweepResult, SweepRow

SCHEMA_VERSION = 1
VERDICT = "gate"  # the head of its column
MEAN = "mean"  # what stands for the task where a line is over all tasks
CSV_COLUMNS = (
    *("bundle", "source", "recipe", "bytes", "float_bytes", "passed", "task", "metric"),
    *("num_examples", "reference", "got", "difference", "low", "high", "lost", "won"),
    *("quantize_s", "check_s"),
)
# Metrics of the table, each with its head and format
_SHOWN = (
    ("image_embeds", "rel_l2_mean", "embeds L2", "{:.2%}"),
    ("logits", "kl_mean", "KL nats", "{:.4f}"),
    ("text", "exact_match", "same text", "{:.1%}"),
    ("speed", "vision", "vision", "{:.2f}x"),
    ("speed", "decode", "decode", "{:.2f}x"),
)
_STATES = {"passed": "pass", "failed": "FAIL", "undecided": "undecided"}


def write_sweep(out: Path, found: SweepResult) -> None:
    """Write sweep.json and sweep.csv, replacing old ones."""
    text = json.dumps(make_json(found), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out / "sweep.json", text + "\n")
    write_text(out / "sweep.csv", make_csv(found))


def make_json(found: SweepResult) -> dict[str, Any]:
    """Everything but the findings of single examples, which the reports have."""
    return {
        "schema_version": SCHEMA_VERSION,
        "data": found.data.name,
        "data_sha256": found.data.sha256,
        "num_examples": len(found.data.examples),
        "skipped": dict(found.data.skipped),
        "bundles": [_row_to_dict(row) for row in found.rows],
        "failed": found.failed,
    }


def make_csv(found: SweepResult) -> str:
    """A line for each bundle and task, and one for the mean over tasks."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in found.rows:
        shared = _describe(row)
        lines = [_task_to_dict(task) for task in row.result.tasks]
        for line in [*lines, _find_mean(row.result) or {}]:
            writer.writerow(shared | line)
    return file.getvalue()


def print_sweep(found: SweepResult) -> None:
    """The table on stdout, in the order of the sweep; a column that would be empty is left out.

    ~ marks a difference of scores or of speed within noise. The source is named where there are
    several.
    """
    sources = {row.candidate.source for row in found.rows if row.candidate.recipe}
    prefix = f"{sources.pop()}/" if len(sources) == 1 else ""
    lines = [_list_cells(row, prefix) for row in found.rows]
    heads = [head for head in lines[0] if any(line[head] for line in lines)] if lines else []
    columns = [Column(head, head != "bundle", head == VERDICT) for head in heads]
    title = f"{counted(len(found.data.examples), 'example')} of {found.data.name}"
    print_table(title, columns, [[line[head] for head in heads] for line in lines])


def _list_cells(row: SweepRow, prefix: str) -> dict[str, str]:
    """Head -> cell, "" where there is nothing to say; the same heads for every row."""
    name = row.candidate.name.removeprefix(prefix)
    cells = {"bundle": name, "size": format_bytes(row.num_bytes)}
    cells["of float"] = f"{row.num_bytes / row.float_bytes:.1%}" if row.float_bytes else ""
    mean = _find_mean(row.result)
    noise = "~" if mean and mean["low"] <= 0 <= mean["high"] else ""
    cells["score"] = f"{mean['got']:.2f}" if mean else ""
    cells["difference"] = f"{noise}{mean['difference']:+.2f}" if mean else ""
    cells["95 %"] = f"{mean['low']:+.2f} to {mean['high']:+.2f}" if mean else ""
    for level, metric, head, form in _SHOWN:
        values = _measure(row, level, metric)
        noise = "~" if any(s.is_noise for s in row.result.speed if s.what == metric) else ""
        cells[head] = noise + form.format(values[0]) if values else ""
    cells[VERDICT] = "" if row.verdict is None else _STATES[row.verdict.state]
    cells["quantize s"] = "" if row.quantize_s is None else f"{row.quantize_s:.1f}"
    return cells | {"check s": f"{row.check_s:.1f}"}


def _row_to_dict(row: SweepRow) -> dict[str, Any]:
    verdict = row.verdict
    return {
        **_describe(row),
        "path": str(row.candidate.bundle),
        "against": row.candidate.against,
        "gate": None if verdict is None else verdict.gate,
        "state": None if verdict is None else verdict.state,
        "failed_limits": [limit.message for limit in verdict.failed] if verdict else [],
        "undecided_limits": [limit.message for limit in verdict.undecided] if verdict else [],
        "guilty": [finding.layer for finding in verdict.guilty] if verdict else [],
        "unusual": [finding.layer for finding in verdict.unusual] if verdict else [],
        "mean": _find_mean(row.result),
        "tasks": [_task_to_dict(task) for task in row.result.tasks],
        "measures": _measure_all(row),
        "environment": row.result.environment,
    }


def _describe(row: SweepRow) -> dict[str, Any]:
    """What both files say of a bundle."""
    return {
        "bundle": row.candidate.name,
        "source": row.candidate.source,
        "recipe": row.candidate.recipe,
        "bytes": row.num_bytes,
        "float_bytes": row.float_bytes,
        "passed": None if row.verdict is None else row.verdict.passed,
        "quantize_s": None if row.quantize_s is None else round(row.quantize_s, 2),
        "check_s": round(row.check_s, 2),
    }


def _task_to_dict(task: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(task), "difference": task.got - task.reference}


def _find_mean(result: CheckResult) -> dict[str, Any] | None:
    """Scores as means over tasks, however many examples each has."""
    tasks = result.tasks
    if not tasks:
        return None
    low, high = mean_interval(tasks)
    reference = sum(task.reference for task in tasks) / len(tasks)
    got = sum(task.got for task in tasks) / len(tasks)
    return {
        "task": MEAN,
        "metric": "",
        "num_examples": sum(task.num_examples for task in tasks),
        "reference": reference,
        "got": got,
        "difference": got - reference,
        "low": low,
        "high": high,
    }


def _measure_all(row: SweepRow) -> dict[str, float | None]:
    """Every metric that a gate may limit; infinity and NaN, which JSON lacks, are None."""
    measured = {
        f"{level}.{metric}": values[0]
        for level, metrics in METRICS.items()
        for metric in metrics
        if (values := _measure(row, level, metric))
    }
    return {key: value if math.isfinite(value) else None for key, value in measured.items()}


def _measure(row: SweepRow, level: str, metric: str) -> list[float]:
    """A metric's value, or nothing where it was not measured."""
    findings = select_findings(row.result, level, metric, "")
    return [METRICS[level][metric].measure(findings).value] if findings else []
