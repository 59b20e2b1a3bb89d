"""Read the header of a safetensors file: where each tensor lies; nothing is loaded.

Layout: uint64 length of the header, the header as JSON, then the tensors' bytes without gaps.
A checkpoint comes from the internet, so every length and offset is checked before it is used.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from ....runtime.files.regular_file import open_regular
from .tensor_source import ELEMENT_BYTES, TensorSource

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
MAX_RANK = 8


def read_header(path: Path) -> dict[str, TensorSource]:
    """Read and check the header of a safetensors file.

    Raises:
        ValueError: names the file, the tensor, and what does not hold.
    """
    try:
        with open_regular(path) as file:
            file_size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise ValueError(f"{path} has {file_size} bytes: no safetensors file")
            if length > MAX_HEADER_BYTES or length > file_size - 8:
                raise ValueError(
                    f"{path}: header of {length} bytes in a file of {file_size}: "
                    "truncated, or no safetensors file"
                )
            text = file.read(length)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from error
    data_bytes = file_size - 8 - length
    tensors = {
        name: _read_entry(name, entry, path, 8 + length, data_bytes)
        for name, entry in _parse(text, path)
        if name != "__metadata__"
    }
    _check_cover(path, tensors, 8 + length, data_bytes)
    return tensors


def _parse(text: bytes, path: Path) -> list[tuple[str, Any]]:
    twice: set[str] = set()

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(items)
        if len(content) != len(items):
            twice.update(name for name, n in Counter(name for name, _ in items).items() if n > 1)
        return content

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, absurdly long numbers
        raise ValueError(f"{path}: the header is not JSON: {error}") from error
    if twice:
        raise ValueError(f"{path}: duplicate names in the header: {', '.join(sorted(twice)[:5])}")
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is a {type(header).__name__}, not an object")
    return list(header.items())


def _read_entry(name: str, entry: Any, path: Path, start: int, data_bytes: int) -> TensorSource:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise ValueError(f"{where} has the unknown dtype {dtype!r}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise ValueError(f"{where} has the malformed shape {shape!r}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{where} has the malformed data_offsets {offsets!r}")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise ValueError(
            f"{where} lies at bytes {begin}..{end} of {data_bytes}: a truncated or damaged file"
        )
    nbytes = math.prod(shape) * ELEMENT_BYTES[dtype]
    if nbytes != end - begin:
        raise ValueError(f"{where} {dtype} {shape} needs {nbytes} bytes, it has {end - begin}")
    return TensorSource(name, dtype, tuple(shape), path, start + begin, nbytes)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_cover(path: Path, tensors: dict[str, TensorSource], start: int, data_bytes: int) -> None:
    """Tensors lie one after another: an overlap or a hole means a damaged or a crafted file."""
    position, previous = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset < position:
            raise ValueError(f"{path}: tensor {tensor.name!r} overlaps {previous!r}")
        if tensor.offset > position:
            raise ValueError(
                f"{path}: {tensor.offset - position} bytes before {tensor.name!r} unused"
            )
        position, previous = tensor.offset + tensor.nbytes, tensor.name
    if position != start + data_bytes:
        raise ValueError(
            f"{path}: {start + data_bytes - position} bytes after the last tensor belong to none"
        )
