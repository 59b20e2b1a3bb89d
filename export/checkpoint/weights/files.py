"""Choose the weight files of a checkpoint folder, as transformers does, unless they contradict.

transformers takes model.safetensors where there is one, and the shards of an index otherwise; it
reads neither consolidated.safetensors nor adapter_model.safetensors as weights of the model, and
pytorch_model.bin only where no safetensors file is. A single file beside shards with other values
is what a merge leaves that was saved into the folder of its base: nobody can know which is meant.
"""

from __future__ import annotations

from pathlib import Path

from ..files.json_file import read_json
from .safetensors_header import read_header
from .same_values import are_same
from .tensor_source import TensorSource
from .tensors import INDEX_NAME, SINGLE_NAME, hub_name

_HEAD = "lm_head.weight"


def find_weight_files(folder: Path) -> dict[str, set[str] | None]:
    """The safetensors files of a folder, and which tensors an index says are in each.

    Raises:
        ValueError: no weights, a malformed index, or two sets of weights that differ.
    """
    index_path, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if single.exists():
        if index_path.exists():
            _compare(folder, _read_index(index_path))
        return {SINGLE_NAME: None}
    if index_path.exists():
        return {**_read_index(index_path)}
    hint = " (PyTorch .bin files are not read)" if any(folder.glob("*.bin")) else ""
    raise ValueError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}{hint}")


def _compare(folder: Path, shards: dict[str, set[str]]) -> None:
    """Refuse shards that hold other weights than the single file; absent shards hold none."""
    present = [name for name in shards if name != SINGLE_NAME and (folder / name).exists()]
    if not present:
        return
    single = _by_hub_name(read_header(folder / SINGLE_NAME))
    sharded: dict[str, TensorSource] = {}
    for name in present:
        sharded |= _by_hub_name(read_header(folder / name))
    different = next(
        (n for n, tensor in sharded.items() if n not in single or not are_same(single[n], tensor)),
        None,
    )
    if different is None and len(present) == len(shards):
        different = next((n for n in single if n not in sharded and n != _HEAD), None)
    if different is not None:
        raise ValueError(
            f"{folder} holds two different models: {SINGLE_NAME} and the shards of {INDEX_NAME} "
            f"differ in {different}; remove {SINGLE_NAME} to export the shards, or {INDEX_NAME} "
            f"and its shards to export {SINGLE_NAME} (which transformers would load)"
        )


def _by_hub_name(header: dict[str, TensorSource]) -> dict[str, TensorSource]:
    return {hub_name(name): tensor for name, tensor in header.items()}


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
