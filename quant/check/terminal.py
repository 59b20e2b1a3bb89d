"""Show a check's findings and verdict in a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from ...runtime.terminal.console import print_line, print_table
from ...runtime.terminal.tables import Column
from ..compare.findings import CheckResult, TaskFinding
from ..files.grammar import agree, counted, part_of
from ..gate.metrics import METRICS, describe_ratio, select_findings
from ..gate.verdict import Verdict, tell_apart
from ..report.blame_lines import list_blame, list_unusual

MAX_LAYERS = 8  # guilty ones that are named, and unusual ones
NOISE = Column("95 %", is_verdict=True)
# Of each level the few metrics that say most, all places together
SHOWN: dict[str, tuple[str, ...]] = {
    "settings": ("differences",),
    "pixel_values": ("sqnr_db",),
    "before_merger": ("sqnr_db", "rel_l2"),
    "image_embeds": ("cosine", "sqnr_db", "rel_l2"),
    "logits": ("kl", "kl_mean", "top1", "top5"),
    "text": ("exact_match", "unended", "edit_distance"),
    "layers": ("own_sqnr_db",),
}


def print_check(result: CheckResult, verdict: Verdict | None) -> None:
    """Tables on stdout: what was measured, scores, speed, and the gate if there was one."""
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    title = (
        f"{result.bundle} against {result.reference}: {counted(result.num_examples, 'example')} of "
        f"{result.data}{skipped}"
    )
    print_table(title, ("level", "measure", ">value", "where"), _list_measures(result))
    if differing := [setting for setting in result.settings if not setting.is_equal]:
        rows = [(setting.name, setting.reference, setting.got) for setting in differing]
        print_table("settings that differ", ("setting", "reference", "bundle"), rows)
    if result.tasks:
        columns = ("task", "metric", ">examples", ">reference", ">bundle", ">difference", NOISE)
        print_table("scores of 100", columns, [_task_row(task) for task in result.tasks])
    if result.speed:
        rows = [
            (
                s.what,
                format_runs(s.reference_runs),
                format_runs(s.got_runs),
                s.unit,
                f"{s.ratio:.2f}x",
                describe_ratio(s),
            )
            for s in result.speed
        ]
        columns = ("", ">reference", ">bundle", "unit", ">ratio", "interval of the ratio")
        print_table("speed and memory, medians [lowest - highest]", columns, rows)
    if verdict:
        _print_verdict(verdict)
        return
    for line in list_unusual(result.layers, MAX_LAYERS):
        print_line(line)


def format_runs(runs: Sequence[float]) -> str:
    """`37.4 [36.9 - 41.2]`: the median and the range of some measurements."""
    return f"{statistics.median(runs):.4g} [{min(runs):.4g} - {max(runs):.4g}]"


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
        state = "ok" if row.ok else row.state.upper()
        rows.append((row.key, got, f"{sign} {limit}", row.unit, state, row.detail))
    columns = ("limit", ">got", ">needed", "unit", Column("", is_verdict=True), "where")
    print_table(f"gate {verdict.gate}", columns, rows)
    for line in list_blame(verdict, MAX_LAYERS):
        print_line(line)
    print_line(describe_state(verdict))


def describe_state(verdict: Verdict) -> str:
    """`FAILED: 2 of 9 limits fail, 1 more is undecided`."""
    failed, undecided, total = len(verdict.failed), len(verdict.undecided), len(verdict.rows)
    if verdict.state == "passed":
        return "PASSED"
    if verdict.state == "undecided":
        return f"UNDECIDED: {part_of(undecided, total, 'limit', 'needs', 'need')} more data"
    more = f", {undecided} more {agree(undecided, 'is', 'are')} undecided" if undecided else ""
    return f"FAILED: {part_of(failed, total, 'limit', 'fails', 'fail')}{more}"
