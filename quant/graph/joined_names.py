"""Translate names of layers stored as one matrix into those of their checkpoint tensors."""

from __future__ import annotations

AS_STORED = "as the checkpoint has it"  # of coverage: a layer that was packed before the export


def split_joined(name: str) -> tuple[str, ...]:
    """A layer's checkpoint tensors: "a.q_proj+k_proj" -> "a.q_proj.weight", "a.k_proj.weight"."""
    prefix, _, parts = name.rpartition(".")
    return tuple(f"{prefix}.{part}.weight".removeprefix(".") for part in parts.split("+"))
