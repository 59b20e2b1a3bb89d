"""Run all units of a schedule in a pool, and make one row for each bundle.

OUT/units/...json      results of units; a sweep that was killed goes on from them
OUT/reports/NAME.json  each bundle's merged check, as `vlmedge check` writes it
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.manifest_file import read_manifest
from ..check.plan import Level
from ..compare.findings import CheckResult
from ..compare.reference import is_bundle
from ..data.examples import DataSet
from ..files.atomic import write_text
from ..files.target_lock import take_lock
from ..gate.gate import Gate
from ..gate.verdict import Verdict, judge, judge_built_in
from ..report.result_json import parse_result, to_json
from .merge import merge_checks
from .plan import Sweep
from .schedule import Candidate, Schedule
from .units import MAX_TRIES, UNITS_FOLDER, OnEvent, Pool, Results, run_units
from .worker import count_bytes

LOCK_NAME = ".lock"
LOCK_TEXT = "vlmedge sweep\n"  # by which its folder is known
# All that a folder of a sweep had before its lock said what it is
OLD_NAMES = {LOCK_NAME, UNITS_FOLDER, "reports", "bundles", "logs", "sweep.json", "sweep.csv"}


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One bundle with all that was measured.

    Attributes:
        float_bytes: of what it is compared with; None: a checkpoint.
        quantize_s: None: a ready bundle.
        check_s: of all its units, as if one after another.
    """

    candidate: Candidate
    num_bytes: int
    float_bytes: int | None
    quantize_s: float | None
    check_s: float
    result: CheckResult
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Rows of the bundles whose units are all done, and the units that failed: key -> why."""

    data: DataSet
    rows: tuple[SweepRow, ...]
    failed: dict[str, str]


def run_sweep(
    sweep: Sweep,
    schedule: Schedule,
    out: Path,
    pool: Pool,
    *,
    max_tries: int = MAX_TRIES,
    on_event: OnEvent = lambda event: None,
) -> SweepResult:
    """Do all units and merge what they found.

    Raises:
        ValueError: another sweep is at work in `out`, or it holds something else.
        OSError: a result can't be written.
    """
    with lock_folder(out):
        first = run_units(schedule.units, out, pool, max_tries=max_tries, on_event=on_event)
        ready = {c.speed for c in schedule.candidates if all(key in first.done for key in c.needs)}
        alone = [unit for unit in schedule.alone if unit.key in ready]
        timed = run_units(alone, out, pool, at_once=1, max_tries=max_tries, on_event=on_event)
        found = Results({**first.done, **timed.done}, {**first.failed, **timed.failed})
        rows = []
        for candidate in schedule.candidates:
            if all(key in found.done for key in (*candidate.needs, *_list_checks(candidate))):
                row = _make_row(candidate, schedule.data, sweep.check.levels, sweep.gate, found)
                rows.append(row)
                _write_report(out, row)
        return SweepResult(schedule.data, tuple(rows), found.failed)


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """The folder of results, for one sweep at a time.

    Raises:
        ValueError: another sweep is at work in it, or it holds something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not _is_sweep(out):
        raise ValueError(f"{out} holds something else than a sweep: name a new folder")
    with (out / LOCK_NAME).open("a", encoding="utf-8") as lock:
        if not take_lock(lock, out, wait=False):
            raise ValueError(f"another sweep is at work in {out}")
        lock.truncate(0)
        lock.write(LOCK_TEXT)
        lock.flush()
        yield


def _is_sweep(folder: Path) -> bool:
    """Whether its lock is a sweep's; older ones wrote nothing into it."""
    lock = folder / LOCK_NAME
    if lock.is_symlink() or not lock.is_file():
        return False
    with lock.open("rb") as file:
        text = file.read(len(LOCK_TEXT) + 1)
    names = {path.name for path in folder.iterdir()}
    return text == LOCK_TEXT.encode() or (not text and names <= OLD_NAMES)


def _list_checks(candidate: Candidate) -> list[str]:
    return [*candidate.checks, *([candidate.speed] if candidate.speed else [])]


def _make_row(
    candidate: Candidate,
    data: DataSet,
    levels: tuple[Level, ...],
    gate: Gate | None,
    found: Results,
) -> SweepRow:
    keys = _list_checks(candidate)
    parts = {key: parse_result(json.dumps(found.done[key].value), key) for key in keys}
    shards = [part for key, part in parts.items() if key.startswith("check/")]
    wholes = [part for key, part in parts.items() if not key.startswith("check/")]
    result = merge_checks(shards, wholes, data, levels)
    against = Path(candidate.against)
    return SweepRow(
        candidate=candidate,
        num_bytes=count_bytes(read_manifest(candidate.bundle)),
        float_bytes=count_bytes(read_manifest(against)) if is_bundle(against) else None,
        quantize_s=found.done[candidate.quantize].seconds if candidate.quantize else None,
        check_s=sum(found.done[key].seconds for key in keys),
        result=result,
        verdict=judge(result, gate) if gate else judge_built_in(result),
    )


def _write_report(out: Path, row: SweepRow) -> None:
    path = out / "reports" / f"{row.candidate.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(row.result, row.verdict))
