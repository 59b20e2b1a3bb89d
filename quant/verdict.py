"""What a check found + a gate -> which limits hold, and which layers are to blame where not."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .findings import CheckResult, LayerFinding
from .gate import Gate, Limit
from .gate_metrics import list_places, select_findings
from .limits import Row, State, is_incomparable, judge_limit, tell_apart

__all__ = ["Row", "State", "Verdict", "describe_layer", "find_outliers", "judge", "tell_apart"]

# A layer sticks out that has four times the error power of its kind's median, and is beyond the
# spread of its kind as well.
STICKS_OUT_DB = 6.0
STICKS_OUT_SIGMAS = 4.0
# No format in use comes near this with sensible ranges (4 bits rounded to nearest: about 20 dB)
BROKEN_DB = 10.0
HARMLESS_DB = 60.0  # better than any 8-bit format: an error of float arithmetic, nobody's guilt
MIN_PEERS = 4  # with fewer of one precision their median says nothing
_MAD_TO_SIGMA = 1.4826
_LAYER_LEVELS = ("before_merger", "image_embeds", "logits", "text", "tasks", "layers")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every limit of a gate judged.

    Attributes:
        guilty: layers that stick out, the worst first, each in its worst bucket; empty where no
            limit failed that a layer can be blamed for.
    """

    gate: str
    rows: tuple[Row, ...]
    guilty: tuple[LayerFinding, ...]

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
    def state(self) -> State:
        """Of the whole gate: the worst of its limits'."""
        return "failed" if self.failed else "undecided" if self.undecided else "passed"


def judge(result: CheckResult, gate: Gate) -> Verdict:
    """Hold every limit of a gate against what a check measured.

    Raises:
        ValueError: the gate limits what was not measured: nothing can be said, not even "passed".
    """
    if missing := [text for limit in gate.limits if (text := _not_measured(result, limit))]:
        raise ValueError(f"{gate.name} cannot be judged: " + "; ".join(dict.fromkeys(missing)))
    rows = tuple(judge_limit(result, limit) for limit in gate.limits)
    blamable = {row.level for row in rows if row.state == "failed"} & set(_LAYER_LEVELS)
    layers = result.layers
    if blamable <= {"before_merger", "image_embeds"}:  # no layer of the decoder can be the cause
        layers = tuple(layer for layer in layers if layer.layer.startswith("visual."))
    return Verdict(gate.name, rows, find_outliers(layers) if blamable else ())


def find_outliers(layers: Sequence[LayerFinding]) -> tuple[LayerFinding, ...]:
    """The layers whose own error clearly sticks out, the worst first, each in its worst bucket.

    A layer is held against those of its own precision (4 bits have more error than 8, as expected),
    against all quantized ones if it has few of its kind. One under BROKEN_DB, or with NaN, sticks
    out whatever the others do: a recipe may have broken most of them.
    """
    worst: dict[str, LayerFinding] = {}
    for finding in layers:
        known = worst.get(finding.layer)
        if known is None or _own(finding) < _own(known):
            worst[finding.layer] = finding
    quantized = [finding for finding in worst.values() if _own(finding) < HARMLESS_DB]
    groups: dict[str, list[LayerFinding]] = {}
    for finding in quantized:
        groups.setdefault(finding.precision, []).append(finding)
    found: list[LayerFinding] = []
    for group in groups.values():
        threshold = _threshold(group if len(group) >= MIN_PEERS else quantized)
        found += [f for f in group if _own(f) < threshold]
    found += [f for f in quantized if _own(f) < BROKEN_DB and f not in found]
    return tuple(sorted(found, key=_own))


def describe_layer(finding: LayerFinding) -> str:
    """`visual.blocks.3.mlp.fc2 (int8 static, 7.1 dB)`."""
    return f"{finding.layer} ({finding.precision}, {finding.own_sqnr_db:.1f} dB)"


def _own(finding: LayerFinding) -> float:
    """Own SQNR in dB for ranking; NaN is worse than anything."""
    return -math.inf if math.isnan(finding.own_sqnr_db) else finding.own_sqnr_db


def _threshold(peers: Sequence[LayerFinding]) -> float:
    """Own SQNR in dB under which a layer sticks out of its peers."""
    values = np.array([_own(finding) for finding in peers])
    median = float(np.median(values))
    if len(peers) < MIN_PEERS or not math.isfinite(median):
        return -math.inf
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(values - median)))
    return median - max(STICKS_OUT_DB, STICKS_OUT_SIGMAS * sigma)


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
