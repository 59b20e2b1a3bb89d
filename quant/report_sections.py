"""What a check found + its verdict -> the report's headline and sections, words and numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ..runtime.manifest import CoverageEntry
from .findings import CheckResult, SpeedFinding, TextFinding
from .grammar import all_of, everything, part_of
from .page import Cell, Figure, Headline, Section, Table, counted, num
from .plots import draw_twice, interval_plot
from .report_levels import LEVELS
from .statistics import mcnemar_p
from .svg import MINUS, fixed, format_number
from .verdict import Verdict, describe_layer, tell_apart

MAX_NAMED = 8  # guilty layers in the headline


def make_headline(result: CheckResult, verdict: Verdict | None) -> Headline:
    """The verdict in one line, the failed limits and the guilty layers under it."""
    facts = [
        ("bundle", result.bundle),
        ("against", result.reference),
        ("data", f"{result.data}, {counted(result.num_examples, 'example')}"),
        ("SHA-256 of the data", result.data_sha256[:16]),
    ]
    if result.skipped:
        facts.append(("skipped", counted(len(result.skipped), "example")))
    if verdict is None:
        return Headline("none", "MEASURED", "No gate was given, nothing is judged", tuple(facts))
    facts.append(("gate", verdict.gate))
    if verdict.passed:
        title = f"May ship: {_all(len(verdict.rows))}"
        return Headline("pass", "PASS", title, tuple(facts))
    failed, total = len(verdict.failed), len(verdict.rows)
    title = f"May not ship: {part_of(failed, total, 'limit', 'fails', 'fail')}"
    return Headline("fail", "FAIL", title, tuple(facts), *_blame(result, verdict))


def _all(count: int) -> str:
    return all_of(count, "limit", "holds", "hold")


def _blame(result: CheckResult, verdict: Verdict) -> tuple[str, tuple[str, ...], str]:
    if verdict.guilty:
        points = [describe_layer(finding) for finding in verdict.guilty[:MAX_NAMED]]
        if more := len(verdict.guilty) - MAX_NAMED:
            points += [f"and {more} more"] if more > 0 else []
        return "Guilty layers, by their own error:", tuple(points), ""
    if all(row.level in ("speed", "pixel_values") for row in verdict.failed):
        return "", (), ""
    if not result.layers:
        return "", (), "Layers were not compared, so none can be named."
    return "", (), "No layer stands out of its kind: the error comes from many."


def gate_section(verdict: Verdict | None) -> list[Section]:
    """Every limit with what was measured, the failed ones first."""
    if verdict is None:
        return []
    columns = (
        Cell("limit"),
        Cell("measured", "num"),
        Cell("needed", "num"),
        Cell(""),
        Cell("where"),
    )
    rows = []
    for row in sorted(verdict.rows, key=lambda row: row.ok):
        got, limit = tell_apart(row.got, row.limit)
        sign = "≥" if row.bound == "min" else "≤"
        unit = f" {row.unit}" if row.unit else ""
        rows.append(
            (
                Cell(row.key, "name", f"{LEVELS[row.level]}: {row.meaning}"),
                num(_minus(got) + unit),
                num(f"{sign} {_minus(limit)}{unit}"),
                Cell("holds", "ok") if row.ok else Cell("fails", "bad"),
                Cell(_minus(row.detail), "quiet"),
            )
        )
    return [Section("gate", "Limits", (), (Table(columns, tuple(rows)),))]


def task_section(result: CheckResult) -> list[Section]:
    """Scores side by side, the difference with its interval, and what of it is noise."""
    if not result.tasks:
        return []
    by_task: dict[str, list[TextFinding]] = {}
    for text in result.texts:
        by_task.setdefault(text.task, []).append(text)
    plot, rows = [], []
    for task in result.tasks:
        change = task.got - task.reference
        style = "quiet" if task.is_noise else "bad" if change < 0 else "good"
        plot.append((task.task, task.low, change, task.high, style))
        word = "within noise" if task.is_noise else "a loss" if change < 0 else "a gain"
        rows.append(
            (
                Cell(task.task, "", f"{task.metric}, {counted(task.num_examples, 'example')}"),
                num(f"{task.reference:.1f}"),
                num(f"{task.got:.1f}"),
                num(fixed(change, 1, sign=True)),
                num(f"{fixed(task.low, 1, sign=True)} to {fixed(task.high, 1, sign=True)}"),
                Cell(word, {"bad": "bad", "good": "ok"}.get(style, "quiet")),
                Cell(_count_changes(by_task.get(task.task, [])), "quiet"),
            )
        )
    headings = ("task", "reference", "this bundle", "difference", "95 % interval", "", "answers")
    columns = tuple(Cell(name, "num" if 0 < i < 5 else "") for i, name in enumerate(headings))
    label = "Difference of task scores with their intervals"
    wide, narrow = draw_twice(
        lambda width: interval_plot(plot, unit="points", width=width, label=label)
    )
    items = (
        Table(columns, tuple(rows)),
        Figure(
            wide,
            "This bundle less the reference, in points of 100, with the interval of a paired "
            "bootstrap: grey where it holds 0.",
            narrow,
        ),
    )
    return [Section("tasks", "Scores by task", (), items)]


def _count_changes(texts: Sequence[TextFinding]) -> str:
    pairs = [
        (text.reference_score, text.got_score)
        for text in texts
        if text.reference_score is not None and text.got_score is not None
    ]
    if not pairs:
        return ""
    lost = sum(reference > got for reference, got in pairs)
    won = sum(reference < got for reference, got in pairs)
    told = f"{lost} lost, {won} won"
    if lost + won == 0 or not all(score in (0, 1) for pair in pairs for score in pair):
        return told
    p = mcnemar_p(*zip(*pairs, strict=True))
    return f"{told}, p {p:.2f}" if p >= 0.01 else f"{told}, p < 0.01"


def speed_section(speed: Sequence[SpeedFinding]) -> list[Section]:
    """Time and memory side by side."""
    if not speed:
        return []
    headings = ("", "reference", "this bundle", "ratio", "")
    columns = tuple(Cell(name, "num" if 0 < i < 4 else "") for i, name in enumerate(headings))
    rows = tuple(
        (
            Cell(one.what.replace("_", " ")),
            num(f"{format_number(one.reference)} {one.unit}"),
            num(f"{format_number(one.got)} {one.unit}"),
            num(f"{one.ratio:.2f}"),
            _describe_ratio(one),
        )
        for one in speed
    )
    return [Section("speed", "Speed and memory", (), (Table(columns, rows),))]


def _describe_ratio(one: SpeedFinding) -> Cell:
    ratio, is_memory = one.ratio, one.what == "peak_memory"
    if not ratio > 0 or not math.isfinite(ratio):
        return Cell("", "quiet")
    if abs(ratio - 1) < 0.005:
        return Cell("the same", "quiet")
    if ratio < 1:
        return Cell(f"{1 / ratio:.2f} times {'less' if is_memory else 'faster'}", "ok")
    return Cell(f"{ratio:.2f} times {'more' if is_memory else 'slower'}", "bad")


def coverage_section(coverage: Sequence[CoverageEntry]) -> list[Section]:
    """What each part is computed in: counted, and by name in a folded table."""
    if not coverage:
        return []
    counts = Counter((entry.kind, entry.precision) for entry in coverage)
    summary = Table(
        (Cell("parts"), Cell("precision"), Cell("count", "num")),
        tuple(
            (Cell(kind.replace("_", " ")), Cell(precision), num(str(count)))
            for (kind, precision), count in counts.items()
        ),
    )
    rows = tuple(
        (Cell(e.name, "name"), Cell(e.kind.replace("_", " ")), Cell(e.precision), Cell(e.reason))
        for e in coverage
    )
    columns = tuple(map(Cell, ("name", "kind", "precision", "reason")))
    full = Table(columns, rows, f"{everything(len(rows), 'part')} by name, with the reason")
    return [Section("coverage", "Coverage", (), (summary, full))]


def environment_section(result: CheckResult) -> list[Section]:
    """Versions and machine, and the examples that were left out."""
    items = []
    if result.environment:
        items.append(_pairs(("what", "value"), result.environment, ""))
    if result.skipped:
        summary = f"Skipped: {counted(len(result.skipped), 'example')}"
        items.append(_pairs(("example", "reason"), result.skipped, summary))
    return [Section("environment", "Environment", (), tuple(items))] if items else []


def _pairs(headings: tuple[str, str], values: Mapping[str, str], summary: str) -> Table:
    rows = tuple((Cell(name), Cell(value)) for name, value in values.items())
    return Table((Cell(headings[0]), Cell(headings[1])), rows, summary)


def _minus(text: str) -> str:
    """Hyphens that are signs of numbers as such; those in names stay."""
    return re.sub(r"(?<![\w./-])-(?=\d)", MINUS, text)
