"""The weight files of a checkpoint folder -> where each tensor lies, under the hub's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .json_file import read_json
from .safetensors_header import TensorSource, read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# Names that transformers 5 keeps in memory, and some tools save, -> the hub's.
_RENAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))
# Saved by some tools though they are computed, or a tied copy: never read.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq|.*rotary_pos_emb\.inv_freq")


def find_weight_files(folder: Path) -> dict[str, set[str] | None]:
    """The safetensors files of a folder, and which tensors an index says are in each.

    Raises:
        ValueError: no weights, or a malformed index.
    """
    index_path = folder / INDEX_NAME
    if index_path.exists():
        return {**_read_index(index_path)}
    if (folder / SINGLE_NAME).exists():
        return {SINGLE_NAME: None}
    hint = " (PyTorch .bin files are not read)" if any(folder.glob("*.bin")) else ""
    raise ValueError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}{hint}")


def read_tensors(folder: Path, files: Mapping[str, set[str] | None]) -> dict[str, TensorSource]:
    """The tensors of all files under the hub's names.

    Raises:
        ValueError: a damaged file, an index that doesn't fit it, or one name twice.
    """
    tensors: dict[str, TensorSource] = {}
    for file_name, listed in files.items():
        header = read_header(folder / file_name)
        if listed is not None and (wrong := listed ^ set(header)):
            raise ValueError(
                f"{folder / INDEX_NAME} and {file_name} disagree about: {few_names(sorted(wrong))}"
            )
        for name, tensor in header.items():
            hub_name = _hub_name(name)
            if hub_name in tensors:
                raise ValueError(f"{folder}: tensor {name!r} is there twice")
            if not _IGNORED.fullmatch(hub_name):
                tensors[hub_name] = tensor
    return tensors


def _read_index(path: Path) -> dict[str, set[str]]:
    """Shard name -> the tensors the index places in it."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} has no weight_map")
    files: dict[str, set[str]] = {}
    for tensor, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ValueError(f"{path}: {tensor!r} is in {file_name!r}, which is no plain file name")
        files.setdefault(file_name, set()).add(tensor)
    return dict(sorted(files.items()))


def _hub_name(name: str) -> str:
    for prefix, hub_prefix in _RENAMES:
        if name.startswith(prefix):
            return hub_prefix + name.removeprefix(prefix)
    return name


def few_names(names: list[str]) -> str:
    """Up to 20 names, and how many more: an error is read by a person."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{len(names)} tensors: {', '.join(names[:20])}{more}"
