"""What a check found + a gate -> which limits hold, and which layers are unusual where not."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .blame import Blame
from .findings import CheckResult, LayerFinding, TaskFinding
from .gate import Gate, Limit
from .gate_metrics import METRICS, list_places, select_findings
from .statistics import mean_interval
from .unusual import find_under_limit, find_unusual

# Exit codes of the command line
PASSED, FAILED, COULD_NOT_RUN = 0, 1, 2

_LAYER_LEVELS = ("before_merger", "image_embeds", "logits", "text", "tasks", "layers")


@dataclass(frozen=True, slots=True)
class Row:
    """One limit and what was measured.

    Attributes:
        key: as the gate spells it: `image_embeds."448x448".cosine_min`.
        level: the gate's table: what was compared.
        where: a bucket or a task; "" for all.
        detail: the place of the worst case, or why a limit is let pass.
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
    ok: bool
    detail: str

    @property
    def message(self) -> str:
        """One line: `image_embeds.cosine_min: got 0.98, needed at least 0.999 (a, 448x448)`."""
        got, limit = tell_apart(self.got, self.limit)
        unit = f" {self.unit}" if self.unit else ""
        needed = "at least" if self.bound == "min" else "at most"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.key}: got {got}{unit}, needed {needed} {limit}{unit}{detail}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every limit of a gate judged.

    Attributes:
        guilty: layers that a limit of the level "layers" fails for, and those that trials have
            found to be the cause of another one; the worst first, each in its worst bucket.
        unusual: layers whose own error their precision does not explain; empty where no limit
            failed that a layer can be blamed for.
        blames: what trials have found, see blame_levels.py; empty where there were none.
    """

    gate: str
    rows: tuple[Row, ...]
    guilty: tuple[LayerFinding, ...] = ()
    unusual: tuple[LayerFinding, ...] = ()
    blames: tuple[Blame, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return all(row.ok for row in self.rows)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The limits that don't hold."""
        return tuple(row for row in self.rows if not row.ok)

    @property
    def exit_code(self) -> int:
        """0 or 1; 2 (could not run) is an error and no verdict."""
        return PASSED if self.passed else FAILED


def judge(result: CheckResult, gate: Gate) -> Verdict:
    """Hold every limit of a gate against what a check measured.

    Raises:
        ValueError: the gate limits what was not measured: nothing can be said, not even "passed".
    """
    if missing := [text for limit in gate.limits if (text := _not_measured(result, limit))]:
        raise ValueError(f"{gate.name} cannot be judged: " + "; ".join(dict.fromkeys(missing)))
    rows = tuple(_judge_limit(result, limit) for limit in gate.limits)
    blamable = {row.level for row in rows if not row.ok} & set(_LAYER_LEVELS)
    layers = result.layers
    if blamable <= {"before_merger", "image_embeds"}:  # no layer of the decoder can be the cause
        layers = tuple(layer for layer in layers if layer.layer.startswith("visual."))
    return Verdict(
        gate.name,
        rows,
        guilty=find_under_limit(result.layers, rows),
        unusual=find_unusual(layers) if blamable else (),
    )


def tell_apart(got: float, limit: float) -> tuple[str, str]:
    """Both numbers with as few digits as show which is larger: never "got 0.999, needed 0.999"."""
    for digits in range(4, 18):
        texts = f"{got:.{digits}g}", f"{limit:.{digits}g}"
        if texts[0] != texts[1] or got == limit:
            return texts
    return repr(got), repr(limit)


def _not_measured(result: CheckResult, limit: Limit) -> str | None:
    if select_findings(result, limit.level, limit.metric, limit.where):
        return None
    where = f"{limit.level}.{limit.metric}" if limit.level == "speed" else limit.table
    places = list_places(result, limit.level)
    if not limit.where or not places:
        return f"{where} was not measured"
    close = difflib.get_close_matches(limit.where, places, n=1)
    hint = f", did you mean {close[0]!r}?" if close else f" ({', '.join(places)} were)"
    return f"{where} was not measured{hint}"


def _judge_limit(result: CheckResult, limit: Limit) -> Row:
    metric = METRICS[limit.level][limit.metric]
    found = select_findings(result, limit.level, limit.metric, limit.where)
    got, place = metric.measure(found)
    ok = got >= limit.value if limit.bound == "min" else got <= limit.value
    detail = "not a number: see the layers" if math.isnan(got) else place
    if limit.beyond_noise and not ok:
        ok, detail = _within_noise(found, limit, place)
    return Row(
        limit.key,
        limit.level,
        limit.where,
        limit.metric,
        metric.unit,
        metric.meaning,
        limit.bound,
        limit.value,
        got,
        ok,
        detail,
    )


def _within_noise(tasks: Sequence[TaskFinding], limit: Limit, place: str) -> tuple[bool, str]:
    """Whether every loss above the limit may be chance; an interval that is NaN excuses nothing."""
    if limit.metric == "loss":
        intervals = [mean_interval(tasks)]
    else:
        lost = [task for task in tasks if not task.loss <= limit.value]
        lost.sort(key=lambda task: task.task != place)  # the worst one is the one to speak of
        intervals = [(task.low, task.high) for task in lost]
    is_noise = all(low <= 0 <= high for low, high in intervals)
    low, high = intervals[0]
    state = "within noise" if is_noise else "beyond noise"
    where = f"{place}, " if place else ""
    return is_noise, f"{where}{state}: difference {low:+.2f} to {high:+.2f} points"
