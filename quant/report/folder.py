"""Write a check's folder: report.html for people, report.json and junit.xml for programs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...runtime.bundle.manifest import CoverageEntry
from ..compare.findings import CheckResult
from ..files.atomic import check_replaceable
from ..files.named_errors import naming
from ..gate.verdict import Verdict
from .examples import Pictures, example_sections
from .junit import to_junit
from .layers import layer_sections
from .levels import logit_section, size_section
from .page import Section, render_page
from .ranges import range_section
from .result_json import to_json
from .sections import (
    coverage_section,
    environment_section,
    gate_section,
    make_headline,
    settings_section,
    speed_section,
    task_section,
)

# What a report's folder gets, and the kind that own_output knows each by
REPORT_FILES = {"report.html": "page", "report.json": "check", "junit.xml": "junit"}


def render_report(
    result: CheckResult,
    verdict: Verdict | None = None,
    *,
    coverage: Sequence[CoverageEntry] = (),
    pictures: Pictures | None = None,
    extra: Sequence[Section] = (),
) -> str:
    """The text of report.html.

    Args:
        result: what was measured; a level that was not has no section.
        verdict: None: there was no gate.
        coverage: the manifest's.
        pictures: example id -> its pictures, asked for the answers that differ.
        extra: further sections, a sensitivity's, before the coverage.
    """
    sections = [
        *gate_section(verdict),
        *settings_section(result.settings),
        *task_section(result),
        *range_section(result.ranges),
        *layer_sections(result.layers),
        *size_section(result.embeddings),
        *logit_section(result.logits),
        *speed_section(result.speed),
        *example_sections(result.texts, pictures),
        *extra,
        *coverage_section(coverage),
        *environment_section(result),
    ]
    title = f"Check of {result.bundle} against {result.reference}"
    return render_page(title, make_headline(result, verdict), sections)


def write_report(
    folder: str | Path,
    result: CheckResult,
    verdict: Verdict | None = None,
    *,
    coverage: Sequence[CoverageEntry] = (),
    pictures: Pictures | None = None,
    extra: Sequence[Section] = (),
) -> None:
    """Write report.html, report.json and junit.xml; arguments as for render_report.

    Raises:
        OSError: no space, no right to write; older reports are left as they were.
    """
    html = render_report(result, verdict, coverage=coverage, pictures=pictures, extra=extra)
    texts = {
        "report.html": html,
        "report.json": to_json(result, verdict),
        "junit.xml": to_junit(result, verdict),
    }
    write_texts(Path(folder), texts)


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write files into a folder, made if need be; none is renamed before all are on the disk.

    Raises:
        OSError: no space, no right to write; nothing is left half-written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in texts:
        check_replaceable(folder / name)
    written: list[tuple[Path, Path]] = []
    try:
        for name, text in texts.items():
            handle, path = tempfile.mkstemp(prefix=f".{name}.", suffix=".partial", dir=folder)
            written.append((Path(path), folder / name))
            with naming(folder / name), open(handle, "wb") as file:
                # Lone surrogates, which file names and answers may have, become \udc80
                file.write(text.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        for temporary, target in written:
            temporary.chmod(0o666 & ~_umask())  # mkstemp's is 0600
            temporary.replace(target)
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
