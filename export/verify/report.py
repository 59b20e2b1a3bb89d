"""Show what `--verify` compared, as rows, a table and JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ...runtime.terminal.console import print_table
from ...runtime.terminal.tables import Column
from .tolerance import Difference, Tolerance


@dataclass(frozen=True, slots=True)
class VerifyRow:
    """One comparison of one request.

    Attributes:
        what: "settings", "image embeddings", "logits" or "greedy tokens".
        request: "400x130" (pixels of the picture), "2 pictures", "text"; a setting's name.
        difference: of the numbers; None for tokens and settings.
        tolerance: what was allowed; None for tokens and settings.
        detail: "[4, 9] -> 36 tokens", "16 of 16 steps", "16 of 16 equal".
        ok: within the tolerance.
    """

    what: str
    request: str
    difference: Difference | None
    tolerance: Tolerance | None
    detail: str
    ok: bool


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Everything that was compared."""

    bundle: str
    rows: tuple[VerifyRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every row is within its tolerance."""
        return all(row.ok for row in self.rows)


def print_report(report: VerifyReport) -> None:
    """The comparison as a table on stdout."""
    print_table(
        f"{report.bundle} against transformers in float32: "
        + ("passed" if report.passed else "FAILED"),
        (
            "request",
            "compared",
            ">max abs",
            ">rel L2",
            ">cosine",
            "tolerance",
            "",
            Column("", is_verdict=True),
        ),
        [_format(row) for row in report.rows],
    )


def _format(row: VerifyRow) -> tuple[str, ...]:
    figures = ("", "", "")
    if row.difference is not None:
        difference = row.difference
        figures = (
            f"{difference.max_abs:.2g}",
            f"{difference.rel_l2:.2g}",
            f"{difference.cosine:.6f}",
        )
    limit = f"{row.tolerance.measure} {row.tolerance.limit:.2g}" if row.tolerance else ""
    return row.request, row.what, *figures, limit, row.detail, "ok" if row.ok else "TOO FAR"


def report_to_dict(report: VerifyReport) -> dict[str, Any]:
    """The report for `--json`; a figure that is no finite number, which JSON lacks, is None."""
    content = {"passed": report.passed, **dataclasses.asdict(report)}
    for row in content["rows"]:
        for part in (row["difference"] or {}, row["tolerance"] or {}):
            for name, value in part.items():
                if isinstance(value, float) and not math.isfinite(value):
                    part[name] = None
    return content
