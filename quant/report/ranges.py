"""Show the largest values of float16 tensors."""

from __future__ import annotations

from collections.abc import Sequence

from ..compare.findings import FLOAT16_LARGEST, RangeFinding
from .page import Cell, Section, Table, num
from .svg import format_number


def range_section(ranges: Sequence[RangeFinding]) -> list[Section]:
    """What comes near float16's end or goes over it, in the order it runs, and the largest."""
    if not ranges:
        return []
    columns = (
        Cell("layer"),
        Cell("largest", "num"),
        Cell(""),
        Cell("tensor"),
        Cell("example"),
    )
    rows = tuple(
        (
            Cell(one.layer, "name"),
            num(format_number(one.largest)),
            _state(one),
            Cell(one.tensor, "quiet"),
            Cell(one.example, "quiet"),
        )
        for one in ranges
    )
    text = (
        f"This bundle computes in float16, which ends at {FLOAT16_LARGEST:g}: a device makes "
        "infinity of what is over it. The CPU that this check ran on computes in float32 and hides "
        "it from all other numbers here."
    )
    return [Section("float16", "Range of float16", (text,), (Table(columns, rows),))]


def _state(one: RangeFinding) -> Cell:
    if one.overflows:
        return Cell("infinite", "bad")
    return Cell("near the end", "open") if one.is_near else Cell("holds", "ok")
