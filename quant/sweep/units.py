"""Run units of work that need one another, in processes that may die on the way.

A result is a file that is written whole when its unit is done, so a sweep that was killed goes on
where it was: a unit is done again only where something that decides its result has changed. A
worker that dies (killed, out of memory, its machine lost) costs one try of its unit; an error that
the unit reports itself would come again, so it is not tried again, and the rest goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ...runtime.files.json_text import parse_json
from ..files.atomic import write_text

MAX_TRIES = 3
UNITS_FOLDER = "units"


@dataclass(frozen=True, slots=True)
class Unit:
    """A function call whose result is kept.

    Attributes:
        key: its name and, with .json behind it, its result's file: "check/orin/2".
        function: "package.module:name"; takes `kwargs`, returns what JSON can hold.
        kwargs: what JSON can hold; paths are absolute, a worker may start in another folder.
        needs: keys of units that have to be done before.
        inputs: what else decides the result, name -> hash: data, a bundle.
        means: more keywords, which say how it is done and not what comes out: num_threads.
        outputs: paths that must be there for a result to count: a bundle's folder.
    """

    key: str
    function: str
    kwargs: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one try.

    Attributes:
        value: what the function returned.
        error: what it raised, in one line; None where it returned or died.
        death: why the worker ended without an answer; None where it answered.
    """

    key: str
    value: Any = None
    error: str | None = None
    death: str | None = None


class Pool(Protocol):
    """Runs calls side by side, each in a process whose memory is given back."""

    @property
    def num_workers(self) -> int:
        """Calls that run at once."""
        ...

    def start(self, key: str, function: str, kwargs: Mapping[str, Any]) -> None:
        """Begin a call; at most `num_workers` may be under way."""
        ...

    def wait(self) -> Outcome:
        """Block until any call under way has ended."""
        ...

    def close(self) -> None:
        """End what is still under way."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a sweep, for whoever watches.

    Attributes:
        kind: "kept": done by an earlier run; "died": the unit is tried again.
        text: why, for "died", "failed" and "skipped".
        num_ended: units that need no more work, of `num_units`.
    """

    kind: Literal["kept", "started", "done", "died", "failed", "skipped"]
    key: str
    num_ended: int
    num_units: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class UnitResult:
    """A finished unit: what it returned and what its last try took."""

    value: Any
    seconds: float
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """Every unit's end.

    Attributes:
        done: by key, in the units' order.
        failed: key -> why; those that could not be done without them, too.
    """

    done: dict[str, UnitResult]
    failed: dict[str, str]


OnEvent = Callable[[Event], None]


def run_units(
    units: Sequence[Unit],
    folder: Path,
    pool: Pool,
    *,
    at_once: int | None = None,
    max_tries: int = MAX_TRIES,
    on_event: OnEvent = lambda event: None,
) -> Results:
    """Bring every unit to its end; what one that failed keeps from being done is left out.

    Args:
        units: in any order; those that are ready are started in this one.
        folder: holds the results, one file a unit; kept between runs.
        pool: where calls run; closed by the caller.
        at_once: units under way together, at most; None: as many as the pool has workers.
        max_tries: of a unit whose worker dies.
        on_event: told of every step.

    Raises:
        ValueError: two units of one key, needs that are no units or go in a circle.
        OSError: a result can't be written.
    """
    if max_tries < 1:
        raise ValueError(f"max_tries is {max_tries}, needed at least 1")
    prints = fingerprint_units(units)
    room = min(pool.num_workers, at_once or pool.num_workers)
    return _Run(units, prints, folder, pool, room, max_tries, on_event).finish()


def fingerprint_units(units: Sequence[Unit]) -> dict[str, str]:
    """A hash of all that decides each unit's result, what it needs included.

    Raises:
        ValueError: two units of one key, needs that are no units or go in a circle.
    """
    by_key = {unit.key: unit for unit in units}
    if len(by_key) != len(units):
        keys = [unit.key for unit in units]
        raise ValueError(f"two units are called {next(k for k in keys if keys.count(k) > 1)}")
    prints: dict[str, str] = {}
    left = list(units)
    while left:
        ready = [unit for unit in left if all(need in prints for need in unit.needs)]
        if not ready:
            unit = left[0]
            unknown = [need for need in unit.needs if need not in by_key]
            why = f"{unknown[0]}, which is no unit" if unknown else "itself, by way of others"
            raise ValueError(f"the unit {unit.key} needs {why}")
        for unit in ready:
            parts = [
                unit.function,
                dict(unit.kwargs),
                dict(unit.inputs),
                [prints[need] for need in unit.needs],
            ]
            text = json.dumps(parts, sort_keys=True, allow_nan=False)
            prints[unit.key] = hashlib.sha256(text.encode()).hexdigest()
        left = [unit for unit in left if unit.key not in prints]
    return prints


class _Run:
    """One call of `run_units`."""

    def __init__(
        self,
        units: Sequence[Unit],
        prints: Mapping[str, str],
        folder: Path,
        pool: Pool,
        room: int,
        max_tries: int,
        on_event: OnEvent,
    ) -> None:
        self._units = units
        self._prints = prints
        self._folder = folder / UNITS_FOLDER
        self._pool = pool
        self._room = room
        self._max_tries = max_tries
        self._on_event = on_event
        self._results: dict[str, UnitResult] = {}
        self._failed: dict[str, str] = {}  # key -> why; those left out because of them, too
        self._started: dict[str, float] = {}  # under way: key -> when, in seconds
        self._tries: dict[str, int] = {}

    def finish(self) -> Results:
        for unit in self._units:
            self._keep(unit)
        while len(self._results) + len(self._failed) < len(self._units):
            self._skip_blocked()
            self._start_ready()
            if self._started:
                self._take(self._pool.wait())
        done = {u.key: self._results[u.key] for u in self._units if u.key in self._results}
        return Results(done, self._failed)

    def _keep(self, unit: Unit) -> None:
        """Take an earlier run's result if it is this unit's."""
        try:
            stored = parse_json(self._path(unit.key).read_bytes(), "it")
            value, seconds = stored["value"], float(stored["seconds"])
            is_same = stored["fingerprint"] == self._prints[unit.key]
        except (OSError, ValueError, KeyError, TypeError):  # none there, or damaged: do it again
            return
        if is_same and all(Path(path).exists() for path in unit.outputs):
            self._results[unit.key] = UnitResult(value, seconds, is_kept=True)
            self._tell("kept", unit.key)

    def _skip_blocked(self) -> None:
        """Give up what needs a unit that failed, and what needs that, and so on."""
        count = -1
        while count != len(self._failed):
            count = len(self._failed)
            for unit in self._units:
                lost = [need for need in unit.needs if need in self._failed]
                if lost and not self._is_ended(unit.key):
                    self._failed[unit.key] = f"needs {lost[0]}"
                    self._tell("skipped", unit.key, self._failed[unit.key])

    def _start_ready(self) -> None:
        for unit in self._units:
            if len(self._started) >= self._room:
                return
            is_ready = all(need in self._results for need in unit.needs)
            if is_ready and unit.key not in self._started and not self._is_ended(unit.key):
                self._tries[unit.key] = self._tries.get(unit.key, 0) + 1
                self._started[unit.key] = time.perf_counter()
                self._tell("started", unit.key)
                kwargs = {**unit.kwargs, **unit.means}
                self._pool.start(unit.key, unit.function, kwargs)

    def _take(self, outcome: Outcome) -> None:
        key = outcome.key
        seconds = round(time.perf_counter() - self._started.pop(key), 3)
        if outcome.death is not None:
            if self._tries[key] < self._max_tries:
                self._tell("died", key, outcome.death)
            else:
                self._fail(key, f"{outcome.death}, in each of {self._max_tries} tries")
        elif outcome.error is not None:
            self._fail(key, outcome.error)
        else:
            self._write(key, outcome.value, seconds)
            self._results[key] = UnitResult(outcome.value, seconds)
            self._tell("done", key)

    def _write(self, key: str, value: Any, seconds: float) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {
            "fingerprint": self._prints[key],
            "seconds": seconds,
            "value": value,
        }
        write_text(path, json.dumps(stored, ensure_ascii=False, allow_nan=False) + "\n")

    def _fail(self, key: str, why: str) -> None:
        self._failed[key] = why
        self._tell("failed", key, why)

    def _is_ended(self, key: str) -> bool:
        return key in self._results or key in self._failed

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _tell(self, kind: Any, key: str, text: str = "") -> None:
        num_ended = len(self._results) + len(self._failed)
        self._on_event(Event(kind, key, num_ended, len(self._units), text))
