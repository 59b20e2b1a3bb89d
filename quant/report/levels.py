"""Show the errors of embeddings by picture size, and those of logits by position."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ..compare.findings import EmbeddingFinding, LogitFinding
from .layers import sort_buckets
from .page import Cell, Figure, Section, Table, counted, num
from .plots import Series, draw_twice, line_plot, range_plot
from .svg import fixed, format_number

# A gate's tables in words, in the order of the computation
LEVELS = {
    "settings": "settings",
    "pixel_values": "pixel values",
    "before_merger": "embeddings before the merger",
    "image_embeds": "image embeddings",
    "logits": "logits",
    "text": "answers",
    "tasks": "task scores",
    "speed": "speed and memory",
    "layers": "layers",
    "float16": "range of float16",
}


def size_section(embeddings: Sequence[EmbeddingFinding]) -> list[Section]:
    """Errors of vision by level and picture size."""
    if not embeddings:
        return []
    columns = tuple(
        Cell(name, "num" if i > 1 else "")
        for i, name in enumerate(
            (
                "compared",
                "picture size",
                "pictures",
                "lowest cosine",
                "lowest SQNR, dB",
                "median relative L2",
                "largest relative L2",
                "largest difference",
            )
        )
    )
    rows: list[tuple[Cell, ...]] = []
    figures = []
    levels = [name for name in LEVELS if any(one.level == name for one in embeddings)]
    for level in levels:
        mine = [finding for finding in embeddings if finding.level == level]
        ranges = []
        for bucket in sort_buckets({finding.bucket for finding in mine}):
            found = [finding for finding in mine if finding.bucket == bucket]
            errors = [finding.rel_l2 for finding in found]
            ranges.append((bucket, errors))
            rows.append(
                (
                    Cell(LEVELS[level] if len(ranges) == 1 else "", "quiet"),
                    Cell(bucket, "short"),
                    num(str(len(found))),
                    num(fixed(float(np.min([finding.cosine for finding in found])), 6)),
                    num(fixed(float(np.min([finding.sqnr_db for finding in found])), 1)),
                    num(format_number(float(np.median(errors)))),
                    num(format_number(float(np.max(errors)))),
                    num(format_number(float(np.max([finding.max_abs for finding in found])))),
                )
            )
        if level != "pixel_values":
            wide, narrow = draw_twice(
                functools.partial(_draw_ranges, ranges, label=f"Error of {LEVELS[level]} by size")
            )
            figures.append(
                Figure(
                    wide,
                    f"Relative L2 error of {LEVELS[level]} by picture size: least to most, the "
                    "middle half, the median; the number is the largest.",
                    narrow,
                )
            )
    table = Table(columns, tuple(rows))
    return [Section("sizes", "Error by picture size", (), (table, *figures))]


def _draw_ranges(ranges: Sequence[tuple[str, list[float]]], width: float, *, label: str) -> str:
    return range_plot(ranges, unit="rel. L2", width=width, label=label)


def logit_section(logits: Sequence[LogitFinding]) -> list[Section]:
    """KL and agreement by position of the answer."""
    longest = max((len(finding.kl) for finding in logits), default=0)
    if not longest:
        return []
    kl = _by_position([finding.kl for finding in logits], longest)
    top1 = _by_position([finding.top1 for finding in logits], longest)
    parted = [f.first_divergence for f in logits if f.first_divergence is not None]
    mean = [float(np.mean(values)) for values in kl]
    p95 = [float(np.percentile(values, 95)) for values in kl]
    agree = [100 * float(np.mean(values)) for values in top1]
    kept = len(logits) - len(parted)
    text = (
        f"Both sides are given the reference's answer and asked for each next token. In {kept} of "
        f"{counted(len(logits), 'example')} the best token never differs"
    )
    if parted:
        parts = "the other parts" if len(parted) == 1 else "the others part"
        text += f"; {parts} at position {np.median(parted):g}"
        text += " (median)" if len(parted) > 1 else ""
    divergence = draw_twice(
        lambda width: line_plot(
            (Series("mean", mean), Series("95 % stay under", p95, "worst")),
            y_label="KL, nats",
            x_label="position in the answer",
            is_log=True,
            width=width,
            label="KL divergence by position",
        )
    )
    agreement = draw_twice(
        lambda width: line_plot(
            (Series("best token equal", agree),),
            y_label="share, %",
            x_label="position in the answer",
            height=190,
            width=width,
            label="Agreement of the best token by position",
        )
    )
    last = f"The last position is that of {counted(len(kl[-1]), 'example')}."
    items = (
        Figure(divergence[0], "KL(reference || this bundle) by position. " + last, divergence[1]),
        Figure(
            agreement[0], "Share of examples whose best token is the reference's.", agreement[1]
        ),
    )
    return [Section("logits", "Logits by position", (text + ".",), items)]


def _by_position(values: Sequence[Sequence[float]], longest: int) -> list[list[float]]:
    return [[row[i] for row in values if i < len(row)] for i in range(longest)]
