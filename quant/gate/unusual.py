"""Name the layers whose error is unusual for their precision; that is no verdict yet.

A layer's own error says whether it is computed as its precision can be: a wrong row, a wrong range,
a matrix in the wrong place. It doesn't say whether that is why a limit fails: four bits everywhere
are usual, and may well be the cause. Blame is measured (blame.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..compare.findings import LayerFinding
from ..compare.layer_channels import LEAST_SIGMA_DB, MAD_TO_SIGMA, name_parts

# A layer sticks out that has four times the error power of its kind's median, and is beyond the
# spread of its kind as well.
STICKS_OUT_DB = 6.0
STICKS_OUT_SIGMAS = 4.0
# The farthest of 150,000 channels of a sound layer was under 5 standard deviations, swapped rows in
# 4 bits are at 16: docs/quantization-log.md
CHANNEL_SIGMAS = 8.0
CHANNEL_DB = 10.0
# No format in use comes near this with sensible ranges (4 bits rounded to nearest: about 20 dB)
BROKEN_DB = 10.0
MIN_PEERS = 4  # with fewer of one precision their median says nothing
# What a sound layer has at least, by how its precision begins. Stored in float16 a weight is
# rounded at 76 dB, in bfloat16 at 58; float32 sums in another order stay above 100.
FLOAT_LEAST_DB = {"float32": 80.0, "float16": 55.0, "bfloat16": 40.0}
LEAST_DB = {"int8 block": 30.0, "float8": 18.0, "int8": 15.0, "int4": BROKEN_DB}
# A part is named beside its layer where the parts' errors are this far apart
PARTS_APART_DB = 6.0
_BLOCK = re.compile(r"\.\d+\.")


class FailedLimit(Protocol):
    """What is needed of a `verdict.Row`."""

    @property
    def level(self) -> str:
        """The gate's table."""
        ...

    @property
    def metric(self) -> str:
        """The metric of that table."""
        ...

    @property
    def limit(self) -> float:
        """What was needed."""
        ...

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        ...


def find_unusual(layers: Sequence[LayerFinding]) -> tuple[LayerFinding, ...]:
    """The layers whose own error their precision does not explain, the worst first.

    Each is named once, in its worst bucket. A quantized layer is held against those of its own
    precision (4 bits have more error than 8, as expected), or, where these are few, against all
    quantized ones and what its precision has at least; and against its like in the other blocks
    (behind a GELU a static range costs more than behind a norm, in every block). One under
    BROKEN_DB, or with NaN, is unusual whatever the others do: a recipe may have broken most of
    them. A float layer is held against what float arithmetic can do. And an output channel is held
    against those of its part: one bad row among thousands.
    """
    worst: dict[str, LayerFinding] = {}
    for finding in layers:
        known = worst.get(finding.layer)
        if known is None or judged_db(finding) < judged_db(known):
            worst[finding.layer] = finding
    quantized = [f for f in worst.values() if f.precision not in FLOAT_LEAST_DB]
    floats = [f for f in worst.values() if f.precision in FLOAT_LEAST_DB]
    groups: dict[str, list[LayerFinding]] = {}
    for finding in quantized:
        groups.setdefault(finding.precision, []).append(finding)
    found: dict[str, LayerFinding] = {}
    for precision, group in groups.items():
        threshold = _threshold(group)
        if len(group) < MIN_PEERS:
            threshold = max(_threshold(quantized), _least_db(precision))
        likes: dict[str, list[LayerFinding]] = {}
        for finding in group:
            likes.setdefault(_BLOCK.sub(".", finding.layer), []).append(finding)
        for alike in likes.values():
            least = min(threshold, _threshold(alike)) if len(alike) >= MIN_PEERS else threshold
            found |= {f.layer: f for f in alike if judged_db(f) < least}
    found |= {f.layer: f for f in quantized if judged_db(f) < BROKEN_DB}
    found |= {f.layer: f for f in _find_bad_floats(floats)}
    for finding in layers:
        known = found.get(finding.layer)
        if _has_bad_channel(finding) and (known is None or not _has_bad_channel(known)):
            found.setdefault(finding.layer, finding)
    return tuple(sorted(found.values(), key=judged_db))


def find_under_limit(
    layers: Sequence[LayerFinding], rows: Sequence[FailedLimit]
) -> tuple[LayerFinding, ...]:
    """The layers for which a limit on layers themselves fails, the worst first: they are measured.

    Args:
        layers: of a check.
        rows: its limits, judged.
    """
    found: dict[str, LayerFinding] = {}
    mine = [row for row in rows if (row.level, row.metric) == ("layers", "own_sqnr_db")]
    limits = [row.limit for row in mine if not row.ok]
    for finding in sorted(layers, key=_own_db):
        if limits and not finding.own_sqnr_db >= max(limits):
            found.setdefault(finding.layer, finding)
    return tuple(found.values())


def judged_db(finding: LayerFinding) -> float:
    """Own SQNR in dB of a layer or its worst part; NaN is worse than anything."""
    values = (finding.own_sqnr_db, *finding.part_sqnr_db)
    return -math.inf if any(map(math.isnan, values)) else min(values)


def describe_layer(finding: LayerFinding) -> str:
    """`visual.blocks.3.mlp.fc2 (int8 static, 7.1 dB)`, and the part or row that has the error."""
    texts = [f"{finding.own_sqnr_db:.1f} dB"]
    parts = finding.part_sqnr_db
    if _has_bad_channel(finding):
        texts.append(f"{finding.worst_channel} {finding.worst_channel_db:.1f} dB")
    elif parts and max(parts) - min(parts) > PARTS_APART_DB:
        name = name_parts(finding.layer)[parts.index(min(parts))]
        texts.append(f"its {name} {min(parts):.1f} dB")
    return f"{finding.layer} ({finding.precision}, {'; '.join(texts)})"


def _own_db(finding: LayerFinding) -> float:
    return -math.inf if math.isnan(finding.own_sqnr_db) else finding.own_sqnr_db


def _find_bad_floats(floats: Sequence[LayerFinding]) -> list[LayerFinding]:
    """Under what float arithmetic has, and not because the reference is coarser than the bundle."""
    median = float(np.median([judged_db(f) for f in floats])) if len(floats) >= MIN_PEERS else 0.0
    found = []
    for finding in floats:
        least = FLOAT_LEAST_DB[finding.precision]
        # All of them are coarse: stored in 16 bits, which none comes under
        coarse = min(FLOAT_LEAST_DB.values()) < median < least
        if judged_db(finding) < (median - STICKS_OUT_DB if coarse else least):
            found.append(finding)
    return found


def _has_bad_channel(finding: LayerFinding) -> bool:
    sigma = max(finding.channel_sigma_db, LEAST_SIGMA_DB)
    is_apart = finding.channel_gap_db > max(CHANNEL_DB, CHANNEL_SIGMAS * sigma)
    return is_apart and finding.worst_channel_db < FLOAT_LEAST_DB.get(finding.precision, math.inf)


def _least_db(precision: str) -> float:
    return next((v for k, v in LEAST_DB.items() if precision.startswith(k)), BROKEN_DB)


def _threshold(peers: Sequence[LayerFinding]) -> float:
    """Own SQNR in dB under which a layer sticks out of its peers."""
    values = np.array([judged_db(finding) for finding in peers])
    median = float(np.median(values))
    if len(peers) < MIN_PEERS or not math.isfinite(median):
        return -math.inf
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(values - median)))
    return median - max(STICKS_OUT_DB, STICKS_OUT_SIGMAS * sigma)
