"""Hold one limit of a gate against what was measured: passed, failed, or undecided.

Most metrics are values of these very examples. Two are estimates: a loss that is to be
non-inferior, and times. Of them the whole 95 % interval has to be within the limit to pass and
beyond it to fail; in between more data has to decide, and the row says about how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..compare.findings import CheckResult, SpeedFinding, TaskFinding
from ..compare.paired_interval import PairedSums
from ..compare.ratio_interval import count_runs_needed
from ..files.grammar import agree, counted
from .gate import Limit
from .metrics import METRICS, Measured, describe_ratio, select_findings
from .statistics import count_examples_needed, join_tasks, loss_interval

State = Literal["passed", "failed", "undecided"]
_WORSE_END = ", worse end of the 95 % interval"
_LIMIT_DIGITS = 10
_MAX_TASKS = 3  # that a row names


@dataclass(frozen=True, slots=True)
class Row:
    """One limit and what was measured.

    Attributes:
        key: as the gate spells it: `image_embeds."448x448".cosine_min`.
        level: the gate's table: what was compared.
        where: a bucket or a task; "" for all.
        got: the measured value; of a non-inferior loss the worse end of its interval.
        state: "undecided" where the data can't tell; a gate doesn't pass with it.
        detail: the place of the worst case, the interval, or what it takes to decide.
    """

    key: str
    level: str
    where: str
    metric: str
    unit: str
    meaning: str
    bound: Literal["min", "max"]
    limit: float
    got: float
    state: State
    detail: str

    @property
    def ok(self) -> bool:
        """Whether the limit holds."""
        return self.state == "passed"

    def holds(self, value: float) -> bool:
        """Whether this limit would hold for another value of its metric; not for NaN."""
        return value >= self.limit if self.bound == "min" else value <= self.limit

    @property
    def message(self) -> str:
        """One line: `image_embeds.cosine_min: got 0.98, needed at least 0.999 (a, 448x448)`."""
        got, limit = tell_apart(self.got, self.limit)
        unit = f" {self.unit}" if self.unit else ""
        needed = "at least" if self.bound == "min" else "at most"
        detail = f" ({self.detail})" if self.detail else ""
        state = "undecided, " if self.state == "undecided" else ""
        return f"{self.key}: {state}got {got}{unit}, needed {needed} {limit}{unit}{detail}"


def tell_apart(got: float, limit: float) -> tuple[str, str]:
    """Both numbers with as few digits as show which is larger: never "got 0.999, needed 0.999".

    The limit is a person's, and not rounded: 0.9999999 is not 1.
    """
    given = f"{limit:.{_LIMIT_DIGITS}g}"
    if got == limit:
        return given, given
    for digits in range(4, 18):
        text = f"{got:.{digits}g}"
        if text != f"{limit:.{digits}g}":
            return text, given if digits <= _LIMIT_DIGITS else f"{limit:.{digits}g}"
    return repr(got), repr(limit)


@dataclass(frozen=True, slots=True)
class _Judgement:
    """A state, the value that decides it, and the words for it."""

    state: State
    got: float
    detail: str


def judge_limit(result: CheckResult, limit: Limit) -> Row:
    """Hold one limit against a check that has measured what it speaks of."""
    metric = METRICS[limit.level][limit.metric]
    found = select_findings(result, limit.level, limit.metric, limit.where)
    meaning = metric.meaning
    if not found:  # allowed by `is_incomparable` alone
        judged = _Judgement("failed", math.nan, "pictures have other sizes on the two sides")
    elif limit.level == "tasks":
        judged = _judge_tasks(found, limit)
        meaning += _WORSE_END if limit.non_inferior else ""
    elif limit.level == "speed":
        judged = _judge_speed(found, limit)
    else:
        if limit.level == "settings":
            found = [one for one in found if one.name not in limit.allow]
        got, place = metric.measure(found) if found else Measured(0.0)
        judged = _Judgement(_compare(got, limit), got, place)
    if math.isnan(judged.got) and found:
        judged = _Judgement("failed", judged.got, "not a number: see the layers")
    return Row(
        limit.key,
        limit.level,
        limit.where,
        limit.metric,
        metric.unit,
        meaning,
        limit.bound,
        limit.value,
        judged.got,
        judged.state,
        judged.detail,
    )


def is_incomparable(result: CheckResult, level: str) -> bool:
    """Whether pictures could not be compared because the two sides resize them differently."""
    return level in ("pixel_values", "before_merger", "image_embeds") and any(
        setting.is_of_pictures and not setting.is_equal for setting in result.settings
    )


def find_undecidable(counts: dict[str, int], limit: Limit) -> str | None:
    """Why data of this size can't let a limit on tasks pass, even if all answers are equal.

    Args:
        counts: task -> labelled examples.
        limit: of a gate.

    Returns:
        What it takes; None: it can pass.
    """
    if limit.level != "tasks":
        return None
    counts = {task: n for task, n in counts.items() if limit.where in ("", task) and n}
    if few := _list_few(counts, limit):
        return few
    if not limit.non_inferior or limit.metric not in ("loss", "worst_loss") or not counts:
        return None
    equal = [TaskFinding(t, "", n, 0, 0, 0, 0, 0.0, 0.0, 0.0) for t, n in counts.items()]
    groups = [equal] if limit.metric == "loss" else [[task] for task in equal]
    for group in groups:
        sums = join_tasks(group)
        if loss_interval(sums)[1] > limit.value:
            name = "" if limit.metric == "loss" else f"{group[0].task}: "
            return f"{name}{_say_needed(sums, limit.value)} even if all answers are equal"
    return None


def _compare(got: float, limit: Limit) -> State:
    holds = got >= limit.value if limit.bound == "min" else got <= limit.value
    return "passed" if holds else "failed"


def _judge_tasks(tasks: Sequence[TaskFinding], limit: Limit) -> _Judgement:
    if limit.non_inferior:
        judged = _judge_losses(tasks, limit)
    else:
        got, place = METRICS["tasks"][limit.metric].measure(tasks)
        judged = _Judgement(_compare(got, limit), got, _tell_scope(tasks, limit, place))
    few = _list_few({task.task: task.num_examples for task in tasks}, limit)
    if few is None or (limit.non_inferior and judged.state == "failed"):
        return judged
    return _Judgement("undecided", judged.got, few)


def _list_few(counts: dict[str, int], limit: Limit) -> str | None:
    """The tasks with fewer examples than the gate asks for."""
    few = [(task, n) for task, n in counts.items() if n < limit.min_examples]
    if not few:
        return None
    names = ", ".join(f"{task} has {n}" for task, n in few[:_MAX_TASKS])
    more = f" and {len(few) - _MAX_TASKS} more" if len(few) > _MAX_TASKS else ""
    least, verb = counted(limit.min_examples, "example"), agree(limit.min_examples, "is", "are")
    return f"{names}{more}: at least {least} of each task {verb} asked for"


def _tell_scope(tasks: Sequence[TaskFinding], limit: Limit, place: str) -> str:
    """What a loss says: it is that of these examples, and this is how far others may differ."""
    if limit.metric == "score":
        return place
    of_worst = [task for task in tasks if task.task == place] or tasks
    chosen = tasks if limit.metric == "loss" else of_worst
    least, most = loss_interval(join_tasks(chosen))
    count = sum(task.num_examples for task in chosen)
    where = f"{place}, " if place else ""
    these = f"{agree(count, 'this', 'these')} {counted(count, 'example')}"
    return f"{where}of {these}; 95 % interval {least:+.2f} to {most:+.2f}"


def _judge_losses(tasks: Sequence[TaskFinding], limit: Limit) -> _Judgement:
    """Non-inferiority of the mean over tasks, or of each one of them."""
    if limit.metric == "loss":
        return _judge_loss("", join_tasks(tasks), limit)
    judged = [_judge_loss(f"{task.task}, ", join_tasks([task]), limit) for task in tasks]
    for state in ("failed", "undecided"):
        if those := [one for one in judged if one.state == state]:
            worst = max(those, key=lambda one: one.got)
            more = f"; and {counted(len(those) - 1, 'more task')}" if len(those) > 1 else ""
            return _Judgement(state, worst.got, worst.detail + more)
    return max(judged, key=lambda one: one.got)


def _judge_loss(where: str, sums: PairedSums, limit: Limit) -> _Judgement:
    least, most = loss_interval(sums)
    count = _count_examples(sums)
    loss = 0.0 - 100 * sums.mean  # no minus before a zero
    told = f"{where}loss {loss:+.2f}, {least:+.2f} to {most:+.2f}, {counted(count, 'example')}"
    if most <= limit.value:
        return _Judgement("passed", most, told)
    if least > limit.value:
        return _Judgement("failed", most, told)
    return _Judgement("undecided", most, f"{told}; {_say_needed(sums, limit.value)}")


def _count_examples(sums: PairedSums) -> int:
    return round(sums.num_examples)


def _say_needed(sums: PairedSums, limit: float) -> str:
    loss, needed = -100 * sums.mean, count_examples_needed(sums, limit)
    if needed is None:
        return "the loss is too near the limit for any number of examples to tell"
    verb = "pass" if loss <= limit else "fail"
    examples = f"{needed:,} such {agree(needed, 'example', 'examples')}".replace(",", " ")
    return f"it takes about {examples} to {verb}"


def _judge_speed(found: Sequence[SpeedFinding], limit: Limit) -> _Judgement:
    worst = max(found, key=lambda finding: finding.ratio)
    low, ratio, high = worst.interval
    told = f"{METRICS['speed'][limit.metric].measure([worst]).place}; {describe_ratio(worst)}"
    if high <= limit.value:
        return _Judgement("passed", ratio, told)
    if low > limit.value:
        return _Judgement("failed", ratio, told)
    needed = count_runs_needed(worst.got_runs, worst.reference_runs, limit.value)
    if needed is not None:
        told += f"; it takes about {counted(needed, 'run')} to tell"
    elif len(worst.got_runs) > 1:
        told += "; the ratio is too near the limit to tell"
    return _Judgement("undecided", ratio, told)
