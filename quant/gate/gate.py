"""Read gate.toml: the limits that a bundle must hold to ship.

    [image_embeds]
    cosine_min = 0.999
    rel_l2_max = 0.05
    [image_embeds."448x448"]   # of one bucket; [tasks.receipt], [text.receipt] of one task
    rel_l2_max = 0.02
    [tasks]
    loss_max = 2.0             # points, mean over tasks
    non_inferior = true        # of the whole interval, not of these examples; in [tasks.NAME] too
    min_examples = 100         # of each task; with fewer nothing is decided; in [tasks.NAME] too
    [speed]
    vision_max = 1.05          # not 5 % slower than the reference
    [settings]
    allow = ["pixels.max_pixels"]  # may differ from the reference's

A key is a metric of gate_metrics.METRICS with _min or _max. Settings are held by every gate: one
that says nothing of them lets none differ.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomllib

from ...runtime.files.plain_text import check_plain
from ...runtime.files.regular_file import read_regular
from ..compare.settings import list_setting_names
from .metrics import METRICS, PLACES

NON_INFERIOR, MIN_EXAMPLES, ALLOW = "non_inferior", "min_examples", "allow"
# Keys that are no limits but say how limits are judged
_MANNERS = {"tasks": (NON_INFERIOR, MIN_EXAMPLES), "settings": (ALLOW,)}
_LOSSES = ("loss", "worst_loss")
_GONE = {
    "beyond_noise": "it let a loss of any size pass on few examples; needed "
    f"{NON_INFERIOR} = true, which asks that the whole interval of the loss is within the limit"
}
_BOUNDS: dict[str, Literal["min", "max"]] = {"higher": "min", "lower": "max"}
MAX_EXAMPLES = 10**9
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Limit:
    """One threshold.

    Attributes:
        level: a key of METRICS.
        metric: a key of METRICS[level].
        where: a bucket or a task; "" for all of them.
        non_inferior: of a loss: the worse end of its interval is held to the limit.
        min_examples: of a task: with fewer nothing is decided.
        allow: settings that may differ.
    """

    level: str
    metric: str
    bound: Literal["min", "max"]
    value: float
    where: str = ""
    non_inferior: bool = False
    min_examples: int = 0
    allow: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """The table it stands in: `image_embeds."448x448"`."""
        return table_name(self.level, self.where)

    @property
    def key(self) -> str:
        """As the gate file spells it: `image_embeds."448x448".cosine_min`."""
        return f"{self.table}.{self.metric}_{self.bound}"


@dataclass(frozen=True, slots=True)
class Gate:
    """Limits in the order of METRICS; that of the settings is always among them."""

    name: str  # of the file, without its folder
    limits: tuple[Limit, ...]

    @property
    def levels(self) -> frozenset[str]:
        """What a check has to measure for this gate to be judged."""
        return frozenset(limit.level for limit in self.limits)


def table_name(level: str, where: str) -> str:
    """The name of a table as TOML spells it."""
    if not where:
        return level
    return f"{level}.{where}" if _BARE_KEY.fullmatch(where) else f'{level}."{where}"'


def read_gate(path: str | Path) -> Gate:
    """Read a gate file.

    Raises:
        ValueError: no such file, no TOML, or a table, metric or value that is none; says where.
    """
    path = Path(path)
    try:
        text = read_regular(path).decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    return parse_gate(text, path.name)


def parse_gate(text: str, name: str = "gate.toml") -> Gate:
    """Read a gate's TOML, strictly; `name` is for its errors.

    Raises:
        ValueError: as read_gate.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not TOML: {error}") from error
    check_plain(tables, name)  # its keys go into reports
    limits: list[Limit] = []
    for level, table in tables.items():
        if level not in METRICS:
            raise ValueError(f"{name}: unknown table [{level}]{_suggest(level, METRICS)}")
        if not isinstance(table, dict):
            raise ValueError(f"{name}: {level} is {table!r}, needed a table of limits")
        limits += _read_level(level, table, name)
    if not limits:
        raise ValueError(f"{name} has no limit: a gate without one would pass anything")
    if not any(limit.level == "settings" for limit in limits):
        limits.append(Limit("settings", "differences", "max", 0.0))
    order = list(METRICS)
    return Gate(name, tuple(sorted(limits, key=lambda limit: order.index(limit.level))))


def _read_level(level: str, table: Mapping[str, Any], name: str) -> list[Limit]:
    manner = _read_manner(level, level, table, name, _Manner())
    limits = _read_limits(level, "", table, manner, name)
    if level == "settings" and not limits and ALLOW in table:
        limits = [Limit(level, "differences", "max", 0.0, allow=manner.allow)]
    places = {key: value for key, value in table.items() if isinstance(value, dict)}
    for where, inner in places.items():
        if not PLACES[level] or not where:
            raise ValueError(
                f"{name}: [{table_name(level, where) if where else level}] holds the table "
                f"{where!r}: only {', '.join(k for k, v in PLACES.items() if v)} have tables inside"
            )
        title = table_name(level, where)
        for key, value in inner.items():
            if isinstance(value, dict):
                raise ValueError(f"{name}: [{title}] holds a table {key!r}, needed limits")
        inner_manner = _read_manner(level, title, inner, name, manner)
        limits += _read_limits(level, where, inner, inner_manner, name)
    if not limits:
        raise ValueError(f"{name}: [{level}] has no limit{_list_keys(level)}")
    if manner.non_inferior and not any(limit.metric in _LOSSES for limit in limits):
        raise ValueError(f"{name}: [{level}] {NON_INFERIOR} is of loss_max and worst_loss_max")
    return limits


@dataclass(frozen=True, slots=True)
class _Manner:
    """How the limits of a table are judged."""

    non_inferior: bool = False
    min_examples: int = 0
    allow: tuple[str, ...] = ()


def _read_manner(
    level: str, title: str, table: Mapping[str, Any], name: str, outer: _Manner
) -> _Manner:
    """What a table says of it, else the table around it."""
    if level not in _MANNERS:
        return outer
    place = f"{name}: [{title}]"
    if gone := [key for key in _GONE if key in table]:
        raise ValueError(f"{place} {gone[0]} is no key any more: {_GONE[gone[0]]}")
    is_strict = table.get(NON_INFERIOR, outer.non_inferior)
    if not isinstance(is_strict, bool):
        raise ValueError(f"{place} {NON_INFERIOR} is {is_strict!r:.60}, needed true or false")
    count = table.get(MIN_EXAMPLES, outer.min_examples)
    if MIN_EXAMPLES in table and (type(count) is not int or not 1 <= count <= MAX_EXAMPLES):
        raise ValueError(
            f"{place} {MIN_EXAMPLES} is {count!r:.60}, needed an integer from 1 to {MAX_EXAMPLES}"
        )
    allow = table.get(ALLOW, []) if level == "settings" else []
    if not isinstance(allow, list) or not all(isinstance(item, str) for item in allow):
        raise ValueError(f"{place} {ALLOW} is {allow!r:.60}, needed a list of settings' names")
    known = list_setting_names()
    # A checkpoint may ask for generation settings that no bundle has
    unknown = [item for item in allow if item not in known and not item.startswith("generation.")]
    if unknown:
        raise ValueError(f"{place} {ALLOW} names {unknown[0]!r}{_suggest(unknown[0], known)}")
    return _Manner(is_strict, count, tuple(allow))


def _read_limits(
    level: str, where: str, table: Mapping[str, Any], manner: _Manner, name: str
) -> list[Limit]:
    """The limits of one table, tables inside it left out."""
    title = table_name(level, where)
    limits = []
    for key, value in table.items():
        if isinstance(value, dict) or key in _MANNERS.get(level, ()):
            continue
        metric = _read_metric(level, key, f"{name}: [{title}]")
        known = METRICS[level][metric]
        value = _read_value(value, known.low, known.high, f"{name}: [{title}] {key}")
        is_strict = manner.non_inferior and metric in _LOSSES
        limits.append(
            Limit(
                level,
                metric,
                _BOUNDS[known.better],
                value,
                where,
                non_inferior=is_strict,
                min_examples=manner.min_examples,
                allow=manner.allow,
            )
        )
    if where and not limits:
        raise ValueError(f"{name}: [{title}] has no limit{_list_keys(level)}")
    return limits


def _read_metric(level: str, key: str, place: str) -> str:
    """cosine_min -> cosine; the bound that could never help is an error, too."""
    metrics = METRICS[level]
    metric, _, bound = key.rpartition("_")
    if metric in metrics and bound in ("min", "max"):
        needed = _BOUNDS[metrics[metric].better]
        if bound != needed:
            raise ValueError(
                f"{place} {key}: {metric} is better when {metrics[metric].better}, "
                f"needed {metric}_{needed}"
            )
        return metric
    keys = [f"{metric}_{_BOUNDS[known.better]}" for metric, known in metrics.items()]
    if key in metrics:
        raise ValueError(f"{place} {key}: needed {key}_{_BOUNDS[metrics[key].better]}")
    keys += _MANNERS.get(level, ())
    others = [other for other in METRICS if metric in METRICS[other]]
    hint = f"; it is a metric of [{'], ['.join(others)}]" if others else _suggest(key, keys)
    raise ValueError(f"{place} unknown metric {key!r}{hint}{_list_keys(level)}")


def _read_value(value: Any, low: float, high: float, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place} is {value!r:.60}, needed a number")
    if not abs(value) < sys.float_info.max:  # also NaN, and integers that no float holds
        raise ValueError(f"{place} is {value!r:.60}, needed a finite number")
    if not low <= value <= high:
        unit = f"between {low:g} and {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise ValueError(f"{place} is {value:g}, needed a number {unit}")
    return float(value)


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known)}"


def _list_keys(level: str) -> str:
    keys = [f"{metric}_{_BOUNDS[known.better]}" for metric, known in METRICS[level].items()]
    return f" (metrics of [{level}]: {', '.join(keys)})"
