"""Run one step of a check in this process: python -m gpu_check.one_step WORK NAME FUNCTION ARGS."""

from __future__ import annotations

import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from .config import read_config
from .record import SkippedError, StepRecord, write_record


def main() -> None:
    """Call the step's function and write its record."""
    work, name, path, *args = sys.argv[1:]
    module, _, function = path.partition(":")
    start = time.monotonic()
    try:
        figures = getattr(import_module(module), function)(read_config(Path(work)), *args)
        failure = figures.pop("failure", "")  # ran to its end, and found something wrong
        status = "failed" if failure else "ok"
        record = StepRecord(name, status, time.monotonic() - start, failure, figures)
    except SkippedError as error:
        record = StepRecord(name, "skipped", time.monotonic() - start, str(error))
    except Exception as error:  # whatever it is, it goes into the record
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        record = StepRecord(name, "failed", time.monotonic() - start, reason)
    write_record(Path(work), record)


if __name__ == "__main__":
    main()
