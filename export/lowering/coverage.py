"""Translate the precisions of the bundle that is read into those of the one that is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ...quant.graph.joined_names import split_joined
from ...runtime.bundle.manifest import CoverageEntry, Manifest
from ..graphs.decoder import EMBEDDINGS
from ..graphs.vision import PATCH_WEIGHT
from .emitter import FLOATS

BY_DTYPE = "--dtype"
ALWAYS_FLOAT32 = "the target's graph keeps it float32"
# layer -> (precision, reason), where the target forced another one
Notes = Mapping[str, tuple[str, str]]


def list_coverage(manifest: Manifest, compute: str, notes: Notes) -> tuple[CoverageEntry, ...]:
    """Every entry, float ones in the compute type."""
    return tuple(_change(entry, compute, notes) for entry in manifest.coverage)


def _change(entry: CoverageEntry, compute: str, notes: Notes) -> CoverageEntry:
    if entry.name in notes:
        precision, reason = notes[entry.name]
        return dataclasses.replace(entry, precision=precision, reason=reason)
    if entry.graph is None or entry.precision not in FLOATS:
        return entry
    if f"{entry.name}.weight" == PATCH_WEIGHT:
        return dataclasses.replace(entry, precision="float32", reason=ALWAYS_FLOAT32)
    return dataclasses.replace(entry, precision=compute, reason=BY_DTYPE)


def list_precisions(manifest: Manifest, compute: str, notes: Notes) -> dict[str, str]:
    """Every checkpoint tensor; norms and the patch embedding stay float32."""
    changed = {}
    for name, precision in manifest.precision.items():
        is_kept = name in (EMBEDDINGS, PATCH_WEIGHT) or _is_norm(name)
        changed[name] = compute if precision in FLOATS and not is_kept else precision
    for layer, (precision, _) in notes.items():
        for tensor in split_joined(layer):
            changed[tensor] = precision
    return dict(sorted(changed.items()))


def _is_norm(name: str) -> bool:
    return any(part in name for part in ("norm", "ln_q"))
