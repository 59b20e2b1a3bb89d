"""Write the headline and sections of a report from findings and verdict, in words and numbers."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from ...runtime.bundle.manifest import CoverageEntry
from ..compare.findings import CheckResult, LayerFinding, SettingFinding, SpeedFinding, TextFinding
from ..files.grammar import agree, all_of, everything, part_of
from ..gate.blame import Blame, describe_blame
from ..gate.range_limit import LEVEL, list_overflows
from ..gate.statistics import mcnemar_p
from ..gate.unusual import describe_layer
from ..gate.verdict import Verdict, tell_apart
from .blame_lines import list_innocent
from .levels import LEVELS
from .page import Cell, Figure, Headline, Section, Table, counted, num
from .plots import draw_twice, interval_plot
from .svg import MINUS, fixed, format_number

MAX_NAMED = 8  # guilty layers in the headline
_STATE_CELLS = {
    "failed": Cell("fails", "bad"),
    "undecided": Cell("undecided", "open"),
    "passed": Cell("holds", "ok"),
}


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
        note = _blame(result, verdict)[2] if verdict.unusual else ""
        return Headline("pass", "PASS", title, tuple(facts), note=note)
    failed, total = len(verdict.failed), len(verdict.rows)
    undecided = len(verdict.undecided)
    if verdict.state == "undecided":
        title = f"Not decided: {part_of(undecided, total, 'limit', 'needs', 'need')} more data"
        points = tuple(row.message for row in verdict.undecided[:MAX_NAMED])
        return Headline("open", "UNDECIDED", title, tuple(facts), "", points)
    more = f", {undecided} more {agree(undecided, 'is', 'are')} undecided" if undecided else ""
    title = f"May not ship: {part_of(failed, total, 'limit', 'fails', 'fail')}{more}"
    return Headline("fail", "FAIL", title, tuple(facts), *_blame(result, verdict))


def _all(count: int) -> str:
    return all_of(count, "limit", "holds", "hold")


def _blame(result: CheckResult, verdict: Verdict) -> tuple[str, tuple[str, ...], str]:
    """What to call the culprits, they, and a word on what else there is."""
    if over := list(list_overflows(result.ranges)):
        more = [f"and {len(over) - MAX_NAMED} more"] if len(over) > MAX_NAMED else []
        title = f"Infinite on a device that computes in {LEVEL}, by layer:"
        return title, (*over[:MAX_NAMED], *more), "bfloat16 holds these values: export for it."
    innocent = list_innocent(verdict)
    note = ""
    if innocent:
        is_known = any(blame.cause for blame in verdict.blames)
        more = ", not the cause" if is_known else ""
        note = f"Unusual for their precision{more}: {', '.join(_name(innocent))}."
    if any(blame.cause for blame in verdict.blames):
        points = [f"{blame.limit}: {_blame_text(blame)}" for blame in verdict.blames]
        return "Cause, measured by giving layers back:", tuple(points), note
    if verdict.blames:
        return "", (), f"{'; '.join(map(_blame_text, verdict.blames))}. {note}"
    if verdict.guilty:
        return "Guilty layers, by their own error:", tuple(_name(verdict.guilty)), note
    if verdict.suspects:
        title = "Suspects by their own error (not measured):"
        return title, tuple(_name(verdict.suspects)), note
    if note:
        return "", (), note
    if all(row.level in ("settings", "speed", "pixel_values") for row in verdict.failed):
        return "", (), ""
    if not result.layers:
        return "", (), "Layers were not compared, so none can be named."
    return "", (), "No layer stands out of its kind: the error comes from many."


def _blame_text(blame: Blame) -> str:
    """With an arrow of one character: a browser may break a line within "->"."""
    return describe_blame(blame).replace(" -> ", " → ")


def _name(layers: Sequence[LayerFinding]) -> list[str]:
    points = [describe_layer(finding) for finding in layers[:MAX_NAMED]]
    more = len(layers) - MAX_NAMED
    return points + ([f"and {more} more"] if more > 0 else [])


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
    order = list(_STATE_CELLS)
    for row in sorted(verdict.rows, key=lambda row: order.index(row.state)):
        got, limit = tell_apart(row.got, row.limit)
        sign = "≥" if row.bound == "min" else "≤"
        unit = f" {row.unit}" if row.unit else ""
        rows.append(
            (
                Cell(row.key, "name", f"{LEVELS[row.level]}: {row.meaning}"),
                num(_minus(got) + unit),
                num(f"{sign} {_minus(limit)}{unit}"),
                _STATE_CELLS[row.state],
                Cell(_minus(row.detail), "quiet"),
            )
        )
    return [Section("gate", "Limits", (), (Table(columns, tuple(rows)),))]


def settings_section(settings: Sequence[SettingFinding]) -> list[Section]:
    """What decides answers beside the weights: what differs, and all of it in a folded table."""
    if not settings:
        return []
    columns = tuple(map(Cell, ("setting", "reference", "this bundle", "")))

    def make_rows(found: Sequence[SettingFinding]) -> tuple[tuple[Cell, ...], ...]:
        return tuple(
            (
                Cell(one.name, "name"),
                Cell(one.reference),
                Cell(one.got),
                Cell("equal", "ok") if one.is_equal else Cell("differs", "bad"),
            )
            for one in found
        )

    differing = [one for one in settings if not one.is_equal]
    text = (
        part_of(len(differing), len(settings), "setting", "differs", "differ")
        + ": the two sides answer by other rules."
        if differing
        else f"All {len(settings)} settings are the reference's."
    )
    items = [Table(columns, make_rows(differing))] if differing else []
    items.append(Table(columns, make_rows(settings), f"All {len(settings)} settings"))
    return [Section("settings", "Settings", (text,), tuple(items))]


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
                Cell(word, {"bad": "bad", "good": "ok"}.get(style, "quiet verdict")),
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
            "This bundle less the reference, in points of 100, with the 95 % interval of the "
            "paired difference: grey where it holds 0.",
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
    headings = ("", "reference", "this bundle", "ratio", "95 % interval", "")
    columns = tuple(Cell(name, "num" if 0 < i < 5 else "") for i, name in enumerate(headings))
    rows = tuple(
        (
            Cell(one.what.replace("_", " ")),
            num(_format_runs(one.reference_runs, one.unit)),
            num(_format_runs(one.got_runs, one.unit)),
            num(f"{one.ratio:.2f}"),
            num(_format_interval(one)),
            _describe_ratio(one),
        )
        for one in speed
    )
    text = (
        f"Medians of {counted(len(speed[0].got_runs), 'run')}, lowest to highest in brackets. A "
        "run asks both bundles one right after the other and gives one ratio; the interval is "
        "that of their mean."
    )
    return [Section("speed", "Speed and memory", (text,), (Table(columns, rows),))]


def _format_runs(runs: Sequence[float], unit: str) -> str:
    low, middle, high = map(format_number, (min(runs), statistics.median(runs), max(runs)))
    return f"{middle} {unit} [{low} to {high}]"


def _format_interval(one: SpeedFinding) -> str:
    low, _, high = one.interval
    return f"{low:.2f} to {high:.2f}" if math.isfinite(high) else "one run"


def _describe_ratio(one: SpeedFinding) -> Cell:
    ratio, is_memory = one.ratio, one.what == "peak_memory"
    if not ratio > 0 or not math.isfinite(ratio):
        return Cell("", "quiet")
    if one.is_noise:
        return Cell("no difference" if len(one.got_runs) > 1 else "", "quiet verdict")
    if abs(ratio - 1) < 0.005:
        return Cell("the same", "quiet verdict")
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
