"""gate.toml -> the limits a bundle must hold to ship.

    [image_embeds]
    cosine_min = 0.999
    rel_l2_max = 0.05
    [image_embeds."448x448"]   # of one bucket; [tasks.receipt], [text.receipt] of one task
    rel_l2_max = 0.02
    [tasks]
    loss_max = 0.5             # points, mean over tasks
    beyond_noise = true        # a loss whose interval holds 0 does not fail; in [tasks.NAME] too
    [speed]
    vision_max = 1.0           # not slower than the reference

A key is a metric of gate_metrics.METRICS with _min or _max.
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

from ..runtime.plain_text import check_plain
from ..runtime.regular_file import read_regular
from .gate_metrics import METRICS, PLACES

BEYOND_NOISE = "beyond_noise"
_BOUNDS: dict[str, Literal["min", "max"]] = {"higher": "min", "lower": "max"}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Limit:
    """One threshold.

    Attributes:
        level: a key of METRICS.
        metric: a key of METRICS[level].
        where: a bucket or a task; "" for all of them.
        beyond_noise: of a task's loss: fails only if the interval of the difference excludes 0.
    """

    level: str
    metric: str
    bound: Literal["min", "max"]
    value: float
    where: str = ""
    beyond_noise: bool = False

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
    """Limits in the order of METRICS; at least one."""

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
    order = list(METRICS)
    return Gate(name, tuple(sorted(limits, key=lambda limit: order.index(limit.level))))


def _read_level(level: str, table: Mapping[str, Any], name: str) -> list[Limit]:
    noise = level == "tasks" and _read_noise(level, table, name, default=False)
    limits = _read_limits(level, "", table, noise, name)
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
        inner_noise = level == "tasks" and _read_noise(title, inner, name, default=noise)
        limits += _read_limits(level, where, inner, inner_noise, name)
    if not limits:
        raise ValueError(f"{name}: [{level}] has no limit{_list_keys(level)}")
    return limits


def _read_noise(title: str, table: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = table.get(BEYOND_NOISE, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name}: [{title}] {BEYOND_NOISE} is {value!r}, needed true or false")
    return value


def _read_limits(
    level: str, where: str, table: Mapping[str, Any], noise: bool, name: str
) -> list[Limit]:
    """The limits of one table, tables inside it left out."""
    title = table_name(level, where)
    limits = []
    for key, value in table.items():
        if isinstance(value, dict) or (key == BEYOND_NOISE and level == "tasks"):
            continue
        metric = _read_metric(level, key, f"{name}: [{title}]")
        known = METRICS[level][metric]
        value = _read_value(value, known.low, known.high, f"{name}: [{title}] {key}")
        is_loss = metric in ("loss", "worst_loss")
        limits.append(Limit(level, metric, _BOUNDS[known.better], value, where, noise and is_loss))
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
    keys += [BEYOND_NOISE] if level == "tasks" else []
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
