"""What a step came to -> WORK/steps/NAME.json, so that a later call goes on behind it."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

STEPS_FOLDER = "steps"
# failed: raised or crashed; timeout: used its budget up; blocked: what it needs is not ok;
# skipped: this machine has not what it is about.
Status = Literal["ok", "failed", "timeout", "blocked", "skipped"]


class SkippedError(Exception):
    """Raised by a step that this machine has nothing for; its text is the reason."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes:
        reason: of any status but ok, one line.
        figures: what the step returned.
    """

    name: str
    status: Status
    seconds: float
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def find_file(work: Path, name: str, ending: str = "json") -> Path:
    """Where the record of a step is, or its output."""
    return work / STEPS_FOLDER / f"{name}.{ending}"


def write_record(work: Path, record: StepRecord) -> None:
    """Write it whole or not at all."""
    path = find_file(work, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_record(work: Path, name: str) -> StepRecord | None:
    """What a step came to; None: it has not run, or its record is not readable."""
    try:
        raw = json.loads(find_file(work, name).read_text(encoding="utf-8"))
        return StepRecord(**raw)
    except (OSError, ValueError, TypeError):
        return None


def read_figures(work: Path, name: str) -> dict[str, Any]:
    """What a step that is needed returned.

    Raises:
        ValueError: it is not ok; the plan let a step run too early.
    """
    record = read_record(work, name)
    if record is None or record.status != "ok":
        raise ValueError(f"{name} has no figures: run it first")
    return record.figures
