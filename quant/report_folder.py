"""A check's findings and verdict -> a folder with the files that people and CI servers read."""

from __future__ import annotations

from pathlib import Path

from .atomic import write_text
from .findings import CheckResult
from .junit import to_junit
from .report_json import to_json
from .verdict import Verdict


def check_report_folder(folder: Path) -> None:
    """Make the folder before the long work, which would be lost if it could not be made.

    Raises:
        ValueError: there is a file of that name.
        OSError: it can't be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, needed a folder for the report")
    folder.mkdir(parents=True, exist_ok=True)


def write_report(folder: Path, result: CheckResult, verdict: Verdict | None) -> None:
    """Write report.json and junit.xml; older ones are replaced, each whole or not at all.

    Raises:
        OSError: the disk is full.
    """
    write_text(folder / "report.json", to_json(result, verdict))
    write_text(folder / "junit.xml", to_junit(result, verdict))
