"""Compute the numbers that a gate may limit from the findings of one level, with their worst place.

A metric takes the worst case over examples, buckets or positions, unless its name says mean or it
is a share. NaN anywhere makes the metric NaN, which holds no limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..compare.findings import CheckResult, SpeedFinding
from ..files.grammar import counted, part_of

Better = Literal["higher", "lower"]


class Measured(NamedTuple):
    """A metric's value and where it comes from: an example, a layer; "" for a mean."""

    value: float
    place: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a level.

    Attributes:
        better: decides whether a gate limits it by _min or by _max.
        low, high: what the value can be at all; a limit outside is a slip of units.
        measure: findings of the level, at least one -> value.
    """

    better: Better
    unit: str
    meaning: str
    measure: Callable[[Sequence[Any]], Measured]
    low: float = -math.inf
    high: float = math.inf


def select_findings(result: CheckResult, level: str, metric: str, where: str) -> list[Any]:
    """The findings that a limit speaks of; empty where nothing was measured.

    Args:
        result: of a check.
        level: a key of METRICS.
        metric: matters for speed only, where each metric is one finding.
        where: a bucket or a task; "" for all.
    """
    if level == "speed":
        return [finding for finding in result.speed if finding.what == metric]
    found: Sequence[Any] = {
        "settings": result.settings,
        "logits": result.logits,
        "text": result.texts,
        "tasks": result.tasks,
        "layers": result.layers,
    }.get(level, [finding for finding in result.embeddings if finding.level == level])
    return [finding for finding in found if where in ("", _place_of(finding, level))]


def list_places(result: CheckResult, level: str) -> list[str]:
    """The buckets or tasks of a level that were measured."""
    if not PLACES[level]:
        return []
    found = select_findings(result, level, "", "")
    return sorted({_place_of(finding, level) for finding in found})


def _place_of(finding: Any, level: str) -> str:
    return getattr(finding, PLACES[level]) if PLACES[level] else ""


def _worst(field: str, better: Better, *place: str) -> Callable[[Sequence[Any]], Measured]:
    """The worst value of a field and the finding's own names for where that is."""

    def measure(findings: Sequence[Any]) -> Measured:
        values = np.array([getattr(finding, field) for finding in findings], np.float64)
        # argmin and argmax both stop at the first NaN
        index = int(values.argmin() if better == "higher" else values.argmax())
        names = [str(getattr(findings[index], name)) for name in place]
        return Measured(float(values[index]), ", ".join(name for name in names if name))

    return measure


def _mean(field: str) -> Callable[[Sequence[Any]], Measured]:
    def measure(findings: Sequence[Any]) -> Measured:
        return Measured(float(np.mean([getattr(finding, field) for finding in findings])))

    return measure


def _positions(
    field: str, reduce: Callable[[np.ndarray], Any]
) -> Callable[[Sequence[Any]], Measured]:
    """Over all positions of all examples: a long answer weighs more."""

    def measure(findings: Sequence[Any]) -> Measured:
        values = np.concatenate([getattr(finding, field) for finding in findings])
        value = float(reduce(values)) if values.size else math.nan
        return Measured(
            value, f"{counted(values.size, 'position')} of {counted(len(findings), 'answer')}"
        )

    return measure


def _worst_kl(findings: Sequence[Any]) -> Measured:
    measured = [finding for finding in findings if finding.kl]
    if not measured:
        return Measured(math.nan)
    worst = [float(np.max(finding.kl)) for finding in measured]
    index = int(np.argmax(worst))
    return Measured(worst[index], measured[index].example)


def _first_divergence(findings: Sequence[Any]) -> Measured:
    parted = [finding for finding in findings if finding.first_divergence is not None]
    if not parted:
        return Measured(math.inf, "no example parts")
    first = min(parted, key=lambda finding: finding.first_divergence)
    return Measured(float(first.first_divergence), first.example)


def _never_part(findings: Sequence[Any]) -> Measured:
    parted = sum(finding.first_divergence is not None for finding in findings)
    place = part_of(parted, len(findings), "example", "parts", "part")
    return Measured(1 - parted / len(findings), place)


def _exact_match(findings: Sequence[Any]) -> Measured:
    equal = sum(finding.got == finding.reference for finding in findings)
    place = part_of(equal, len(findings), "answer", "is equal", "are equal")
    return Measured(equal / len(findings), place)


def _common_prefix(findings: Sequence[Any]) -> Measured:
    shares = [
        finding.common_prefix / finding.num_tokens
        if finding.num_tokens
        else float(finding.got == finding.reference)
        for finding in findings
    ]
    return Measured(float(np.mean(shares)))


def _unended(findings: Sequence[Any]) -> Measured:
    count, total = sum(not finding.got_ended for finding in findings), len(findings)
    needed = sum(not finding.reference_ended for finding in findings)
    new = sum(finding.reference_ended and not finding.got_ended for finding in findings)
    place = f"{count} of {counted(total, 'answer')} did not end, {needed} of the reference's"
    return Measured(new / total, place)


def _differences(findings: Sequence[Any]) -> Measured:
    names = [finding.name for finding in findings if not finding.is_equal]
    return Measured(float(len(names)), ", ".join(names))


def _ratio(findings: Sequence[Any]) -> Measured:
    """Of the one finding that select_findings leaves (the worst, should there be several)."""
    worst = max(findings, key=lambda finding: finding.ratio)
    return Measured(worst.ratio, f"{worst.got:.4g} against {worst.reference:.4g} {worst.unit}")


def describe_ratio(finding: SpeedFinding) -> str:
    """`0.98 to 1.03 (95 %, 5 runs), no difference`."""
    low, _, high = finding.interval
    runs = len(finding.got_runs)
    if runs < 2:
        return "one run: no spread is known"
    state = ", no difference" if finding.is_noise else ""
    return f"{low:.2f} to {high:.2f} (95 %, {runs} runs){state}"


def _embedding_metrics() -> dict[str, Metric]:
    place = ("example", "bucket")
    return {
        "cosine": Metric(
            "higher", "", "lowest cosine similarity", _worst("cosine", "higher", *place), -1, 1
        ),
        "cosine_mean": Metric("higher", "", "mean cosine similarity", _mean("cosine"), -1, 1),
        "sqnr_db": Metric(
            "higher", "dB", "lowest signal to error ratio", _worst("sqnr_db", "higher", *place)
        ),
        "sqnr_db_mean": Metric("higher", "dB", "mean signal to error ratio", _mean("sqnr_db")),
        "max_abs": Metric(
            "lower", "", "largest absolute difference", _worst("max_abs", "lower", *place), 0
        ),
        "rel_l2": Metric(
            "lower", "", "largest relative L2 error", _worst("rel_l2", "lower", *place), 0
        ),
        "rel_l2_mean": Metric("lower", "", "mean relative L2 error", _mean("rel_l2"), 0),
    }


def _speed_metric(what: str) -> Metric:
    return Metric("lower", "", f"{what.replace('_', ' ')}, ratio to the reference's", _ratio, 0)


def _percentile_99(values: np.ndarray) -> float:
    return float(np.percentile(values, 99))


# What the tables inside a level's table are: the field of a finding that they name
PLACES = {
    "settings": "",
    "pixel_values": "bucket",
    "before_merger": "bucket",
    "image_embeds": "bucket",
    "logits": "",
    "text": "task",
    "tasks": "task",
    "speed": "",
    "layers": "bucket",
}

# level -> metric -> what it is; a gate's key is the metric with _min or _max
METRICS: dict[str, dict[str, Metric]] = {
    "settings": {
        "differences": Metric(
            "lower", "", "settings that are not the reference's", _differences, 0
        ),
    },
    "pixel_values": _embedding_metrics(),
    "before_merger": _embedding_metrics(),
    "image_embeds": _embedding_metrics(),
    "logits": {
        "kl": Metric("lower", "nats", "KL of the worst position", _worst_kl, 0),
        "kl_mean": Metric(
            "lower", "nats", "mean KL of all positions", _positions("kl", np.mean), 0
        ),
        "kl_p99": Metric(
            "lower",
            "nats",
            "KL that 99 % of positions stay under",
            _positions("kl", _percentile_99),
            0,
        ),
        "top1": Metric(
            "higher",
            "",
            "share of positions with equal best token",
            _positions("top1", np.mean),
            0,
            1,
        ),
        "top5": Metric(
            "higher", "", "mean share of the five best in common", _positions("top5", np.mean), 0, 1
        ),
        "first_divergence": Metric(
            "higher", "tokens", "tokens before the first example parts", _first_divergence, 0
        ),
        "never_part": Metric(
            "higher", "", "share of examples whose best tokens are all equal", _never_part, 0, 1
        ),
    },
    "text": {
        "exact_match": Metric("higher", "", "share of equal answers", _exact_match, 0, 1),
        "unended": Metric(
            "lower", "", "share of answers that the reference alone ended", _unended, 0, 1
        ),
        "common_prefix": Metric(
            "higher", "", "mean share of an answer before it differs", _common_prefix, 0, 1
        ),
        "edit_distance": Metric(
            "lower",
            "characters",
            "edit distance of the worst answer",
            _worst("edit_distance", "lower", "example"),
            0,
        ),
        "edit_distance_mean": Metric(
            "lower", "characters", "mean edit distance of answers", _mean("edit_distance"), 0
        ),
    },
    "tasks": {
        "loss": Metric("lower", "points", "points lost (mean of tasks)", _mean("loss"), -100, 100),
        "worst_loss": Metric(
            "lower",
            "points",
            "points lost in the worst task",
            _worst("loss", "lower", "task"),
            -100,
            100,
        ),
        "score": Metric("higher", "points", "score, mean over tasks", _mean("got"), 0, 100),
    },
    "speed": {what: _speed_metric(what) for what in ("vision", "prefill", "decode", "peak_memory")},
    "layers": {
        "own_sqnr_db": Metric(
            "higher",
            "dB",
            "lowest signal to error ratio of a layer alone",
            _worst("own_sqnr_db", "higher", "layer", "precision", "bucket"),
        ),
        "sqnr_db": Metric(
            "higher",
            "dB",
            "lowest signal to error ratio with all errors before",
            _worst("sqnr_db", "higher", "layer", "precision", "bucket"),
        ),
    },
}
