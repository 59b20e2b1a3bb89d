"""Decide which limits of a gate hold, and list the layers that are unusual."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..compare.findings import CheckResult, LayerFinding
from .blame import Blame
from .gate import Gate, Limit
from .limits import Row, State, is_incomparable, judge_limit, tell_apart
from .metrics import list_places, select_findings
from .range_limit import judge_range
from .unusual import find_under_limit, find_unusual

__all__ = ["PICTURES", "Row", "State", "Verdict", "judge", "judge_built_in", "tell_apart"]

PICTURES = ("before_merger", "image_embeds")
_BEHIND_PICTURES = ("logits", "text", "tasks", "layers")
BUILT_IN = "built in"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every limit of a gate judged.

    Attributes:
        guilty: layers whose own error a limit of the level "layers" fails for, and those that
            trials have found to be the cause of another limit; the worst first, each in its worst
            bucket.
        unusual: layers whose own error their precision does not explain, whether or not a limit
            fails.
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
        return tuple(row for row in self.rows if row.state == "failed")

    @property
    def undecided(self) -> tuple[Row, ...]:
        """The limits that the data can't tell of."""
        return tuple(row for row in self.rows if row.state == "undecided")

    @property
    def unmet(self) -> tuple[Row, ...]:
        """The limits that keep the gate from passing, either way."""
        return tuple(row for row in self.rows if not row.ok)

    @property
    def suspects(self) -> tuple[LayerFinding, ...]:
        """Unusual layers that may be why a limit fails, where nobody has measured the cause."""
        levels = {row.level for row in self.failed} & {*PICTURES, *_BEHIND_PICTURES}
        if not levels or self.blames or self.guilty:
            return ()
        if levels <= {*PICTURES}:  # no layer of the decoder can be the cause
            return tuple(found for found in self.unusual if found.layer.startswith("visual."))
        return self.unusual

    @property
    def state(self) -> State:
        """Of the whole gate: the worst of its limits'."""
        return "failed" if self.failed else "undecided" if self.undecided else "passed"


def judge(result: CheckResult, gate: Gate) -> Verdict:
    """Hold every limit of a gate, and the range of float16, against what a check measured.

    Raises:
        ValueError: the gate limits what was not measured: nothing can be said, not even "passed".
    """
    if missing := [text for limit in gate.limits if (text := _not_measured(result, limit))]:
        raise ValueError(f"{gate.name} cannot be judged: " + "; ".join(dict.fromkeys(missing)))
    rows = tuple(judge_limit(result, limit) for limit in gate.limits)
    range_row = judge_range(result)
    return Verdict(
        gate.name,
        (*rows, range_row) if range_row else rows,
        guilty=find_under_limit(result.layers, rows),
        unusual=find_unusual(result.layers),
    )


def judge_built_in(result: CheckResult) -> Verdict | None:
    """What fails without a gate; None where nothing does, and nothing was judged."""
    row = judge_range(result)
    if row is None or row.ok:
        return None
    return Verdict(BUILT_IN, (row,), unusual=find_unusual(result.layers))


def _not_measured(result: CheckResult, limit: Limit) -> str | None:
    found = select_findings(result, limit.level, limit.metric, limit.where)
    if found or is_incomparable(result, limit.level):
        return None
    where = f"{limit.level}.{limit.metric}" if limit.level == "speed" else limit.table
    places = list_places(result, limit.level)
    if not limit.where or not places:
        return f"{where} was not measured"
    close = difflib.get_close_matches(limit.where, places, n=1)
    hint = f", did you mean {close[0]!r}?" if close else f" ({', '.join(places)} were)"
    return f"{where} was not measured{hint}"
