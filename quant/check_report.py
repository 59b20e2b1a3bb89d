"""A check's findings and verdict as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from ..runtime.console import print_line, print_table
from ..runtime.tables import Column
from .findings import CheckResult, TaskFinding
from .gate_metrics import METRICS, select_findings
from .verdict import Verdict, describe_layer, tell_apart

MAX_LAYERS = 8  # guilty ones that are named
NOISE = Column("95 %", is_verdict=True)
# Of each level the few metrics that say most, all places together
SHOWN: dict[str, tuple[str, ...]] = {
    "pixel_values": ("sqnr_db",),
    "before_merger": ("sqnr_db", "rel_l2"),
    "image_embeds": ("cosine", "sqnr_db", "rel_l2"),
    "logits": ("kl", "kl_mean", "top1", "top5"),
    "text": ("exact_match", "edit_distance"),
    "layers": ("own_sqnr_db",),
}


def print_check(result: CheckResult, verdict: Verdict | None) -> None:
    """Tables on stdout: what was measured, scores, speed, and the gate if there was one."""
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    title = (
        f"{result.bundle} against {result.reference}: {result.num_examples} examples of "
        f"{result.data}{skipped}"
    )
    print_table(title, ("level", "measure", ">value", "where"), _list_measures(result))
    if result.tasks:
        columns = ("task", "metric", ">examples", ">reference", ">bundle", ">difference", NOISE)
        print_table("scores of 100", columns, [_task_row(task) for task in result.tasks])
    if result.speed:
        rows = [
            (s.what, f"{s.reference:.4g}", f"{s.got:.4g}", s.unit, f"{s.ratio:.2f}x")
            for s in result.speed
        ]
        print_table("speed and memory", ("", ">reference", ">bundle", "unit", ">ratio"), rows)
    if verdict:
        _print_verdict(verdict)


def _list_measures(result: CheckResult) -> Iterator[tuple[str, str, str, str]]:
    for level, names in SHOWN.items():
        for name in names:
            metric = METRICS[level][name]
            if found := select_findings(result, level, name, ""):
                value, place = metric.measure(found)
                yield level, metric.meaning, f"{value:.4g} {metric.unit}".strip(), place


def _task_row(task: TaskFinding) -> tuple[object, ...]:
    noise = "within noise" if task.is_noise else "beyond noise"
    return (
        task.task,
        task.metric,
        task.num_examples,
        f"{task.reference:.2f}",
        f"{task.got:.2f}",
        f"{task.got - task.reference:+.2f}",
        f"{task.low:+.2f} to {task.high:+.2f}, {noise}",
    )


def _print_verdict(verdict: Verdict) -> None:
    rows = []
    for row in verdict.rows:
        got, limit = tell_apart(row.got, row.limit)
        sign = ">=" if row.bound == "min" else "<="
        state = "ok" if row.ok else "FAILED"
        rows.append((row.key, got, f"{sign} {limit}", row.unit, state, row.detail))
    columns = ("limit", ">got", ">needed", "unit", Column("", is_verdict=True), "where")
    print_table(f"gate {verdict.gate}", columns, rows)
    for finding in verdict.guilty[:MAX_LAYERS]:
        print_line(f"guilty: {describe_layer(finding)}")
    if (rest := len(verdict.guilty) - MAX_LAYERS) > 0:
        print_line(f"guilty: {rest} more layers")
    failed = len(verdict.failed)
    print_line("PASSED" if verdict.passed else f"FAILED: {failed} of {len(verdict.rows)} limits")
