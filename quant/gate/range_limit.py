"""Fail a check where a float16 tensor exceeds its range, whatever the gate says.

No limit of a gate can see it: the CPU that compares a bundle with its reference computes float16
nodes in float32, and only a device makes infinity of such a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..compare.findings import FLOAT16_LARGEST, CheckResult, RangeFinding
from .limits import Row

LEVEL = "float16"


def judge_range(result: CheckResult) -> Row | None:
    """The limit that every bundle has that computes in float16; None for any other."""
    if not result.ranges:
        return None
    worst = max(result.ranges, key=lambda one: (one.overflows, one.largest))
    return Row(
        key=f"{LEVEL}.largest",
        level=LEVEL,
        where="",
        metric="largest",
        unit="",
        meaning="largest value that a device would hold in float16",
        bound="max",
        limit=FLOAT16_LARGEST,
        got=worst.largest,
        state="failed" if worst.overflows else "passed",
        detail=f"{worst.layer}, {worst.example}",
    )


def list_overflows(ranges: Sequence[RangeFinding]) -> Iterator[str]:
    """`model.layers.1.mlp: 1.2e+06 (NAME of the tensor, example receipt)`, a line a layer."""
    worst: dict[str, RangeFinding] = {}
    for one in ranges:
        if one.overflows and not worst.get(one.layer, one).largest > one.largest:
            worst[one.layer] = one
    for layer, one in worst.items():
        yield f"{layer}: {one.largest:.4g} ({one.tensor}, example {one.example})"
