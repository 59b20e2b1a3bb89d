"""Steps -> records: each in a process of its own, within its budget and that of the call.

A step that fails, hangs or crashes the interpreter leaves a record; the others go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .config import Config
from .plan import Step
from .record import StepRecord, find_file, read_record, write_record

LEAST_S = 5.0  # less is not worth a process
TAIL_LINES = 12  # of a failed step's output
SCRIPTS = Path(__file__).resolve().parent.parent

Tell = Callable[[str], None]


def run_steps(
    config: Config,
    steps: Sequence[Step],
    environment: dict[str, str],
    deadline: float,
    tell: Tell,
) -> list[str]:
    """Run steps one after another.

    Args:
        config: written to the work folder already.
        steps: to run, in order.
        environment: of their processes.
        deadline: of `time.monotonic()`; no step runs longer.
        tell: gets a line before and after each.

    Returns:
        The steps that there was no time for.
    """
    left: list[str] = []
    for step in steps:
        if any(name in left for name in step.needs):
            left.append(step.name)
            continue
        if (record := check_needs(config, step)) is not None:
            write_record(config.work, record)
            tell(f"{step.name}: {record.status}, {record.reason}")
            continue
        seconds = deadline - time.monotonic()
        if seconds < LEAST_S:
            left.append(step.name)
            continue
        is_short = seconds < step.budget_s
        tell(f"{step.name}: at most {min(seconds, step.budget_s):.0f} s")
        record = run_step(config, step, environment, min(seconds, step.budget_s))
        if record.status == "timeout" and is_short:
            # Not its own fault: the next call gives it its whole budget.
            left.append(step.name)
            tell(f"{step.name}: the call's time is up")
            continue
        write_record(config.work, record)
        reason = f", {record.reason}" if record.reason else ""
        tell(f"{step.name}: {record.status} after {record.seconds:.1f} s{reason}")
    return left


def check_needs(config: Config, step: Step) -> StepRecord | None:
    """A record of what keeps a step from running; None: nothing does."""
    if config.dry_run and step.needs_gpu:
        return StepRecord(step.name, "skipped", 0.0, "needs a GPU, this is a dry run")
    for name in step.needs:
        record = read_record(config.work, name)
        if record is None:
            return StepRecord(step.name, "blocked", 0.0, f"{name} has not run")
        if record.status == "skipped":
            return StepRecord(step.name, "skipped", 0.0, f"{name} was skipped: {record.reason}")
        if record.status != "ok":
            return StepRecord(step.name, "blocked", 0.0, f"{name} is {record.status}")
    return None


def run_step(config: Config, step: Step, environment: dict[str, str], seconds: float) -> StepRecord:
    """Run one step to its end or to the end of its time."""
    find_file(config.work, step.name).unlink(missing_ok=True)
    output = find_file(config.work, step.name, "log")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gpu_check.one_step", str(config.work), step.name]
    command += [step.function, *step.args]
    start = time.monotonic()
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=SCRIPTS,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it started ends with it
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            spent = time.monotonic() - start
            return StepRecord(step.name, "timeout", spent, f"no end after {spent:.0f} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    record = read_record(config.work, step.name)
    spent = time.monotonic() - start
    if record is not None and process.returncode == 0:
        return record
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return StepRecord(step.name, "failed", spent, f"killed by {name}: {read_tail(output)}")
    return StepRecord(
        step.name, "failed", spent, f"exit code {process.returncode}: {read_tail(output)}"
    )


def read_tail(path: Path) -> str:
    """The last lines of a log, in one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-TAIL_LINES:] if line.strip())[-2000:]
