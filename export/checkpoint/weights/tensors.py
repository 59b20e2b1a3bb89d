"""Find each tensor of a checkpoint folder in its weight files, under the hub's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .safetensors_header import read_header
from .tensor_source import TensorSource

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_HEAD = "lm_head.weight"
# Names that transformers 5 accepts beside the hub's: those it has in memory, those of its class
# without a head, and a doubled first word.
_RENAMES = (
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
    ("model.model.", "model."),
    ("language_model.", "model."),
)
_NOT_READ = "language_model.model."  # nor by transformers
# Saved by some tools though they are computed; transformers doesn't read them either.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq|.*rotary_pos_emb\.inv_freq")


def read_tensors(folder: Path, files: Mapping[str, set[str] | None]) -> dict[str, TensorSource]:
    """The tensors of all files under the hub's names.

    Raises:
        ValueError: a damaged file, an index that doesn't fit it, or one name twice.
    """
    tensors: dict[str, TensorSource] = {}
    for file_name, listed in files.items():
        header = read_header(folder / file_name)
        # An index may list a tied lm_head that no shard holds.
        wrong = set() if listed is None else (listed ^ set(header)) - ({_HEAD} - set(header))
        if wrong:
            raise ValueError(
                f"{folder / INDEX_NAME} and {file_name} disagree about: {few_names(sorted(wrong))}"
            )
        for name, tensor in header.items():
            name_there = hub_name(name)
            if name_there in tensors:
                raise ValueError(f"{folder}: tensor {name!r} is there twice")
            if not _IGNORED.fullmatch(name_there):
                tensors[name_there] = tensor
    return tensors


def hub_name(name: str) -> str:
    """A tensor's name as the hub's checkpoints have it."""
    if name.startswith(_NOT_READ):
        return name
    for prefix, hub_prefix in _RENAMES:
        if name.startswith(prefix):
            return hub_prefix + name.removeprefix(prefix)
    return name


def few_names(names: list[str]) -> str:
    """Up to 20 names, and how many more: an error is read by a person."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{len(names)} tensors: {', '.join(names[:20])}{more}"
