"""Read names, shapes and bytes of a graph's initializers, without the onnx package.

A board has the runtime and no onnx. What is needed of the file is a walk over protobuf's fields:
ModelProto.graph (7), GraphProto.initializer (5), and of a TensorProto dims (1), data_type (2),
name (8), raw_data (9), external_data (13); everything else is passed over unread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import BundleError
from ...runtime.files.protobuf import as_bytes, read_fields, read_varints
from ...runtime.files.regular_file import read_regular

MAX_GRAPH_BYTES = 512 << 20  # a graph whose weights lie outside is a few MiB
# TensorProto.data_type -> bits of an element
_BITS = {
    **{1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64},
    **{16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4},
}


@dataclass(frozen=True, slots=True)
class Initializer:
    """A constant of a graph; `file` is where its bytes lie, None: in the graph's own."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    file: str | None


def read_initializers(path: Path) -> list[Initializer]:
    """The constants of a graph, in the order of the file.

    Raises:
        BundleError: no such file, or no ONNX model.
    """
    try:
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise BundleError(f"{path} has over {MAX_GRAPH_BYTES} bytes: its weights lie inside")
        data = memoryview(read_regular(path))
    except OSError as error:
        raise BundleError(f"{path} is not readable: {error}") from error
    try:
        graphs = [value for number, value in read_fields(data) if number == 7]
        if not graphs:
            raise ValueError("it has no graph")
        return [
            _read_tensor(as_bytes(tensor))
            for graph in graphs
            for number, tensor in read_fields(as_bytes(graph))
            if number == 5
        ]
    except (ValueError, IndexError, UnicodeDecodeError, KeyError) as error:
        raise BundleError(f"{path} is no ONNX model: {error}") from error


def _read_tensor(data: memoryview) -> Initializer:
    dims: list[int] = []
    name, data_type, external = "", 0, {}
    for number, value in read_fields(data):
        if number == 1:
            # One varint, or all of them packed into one field
            dims += [value] if isinstance(value, int) else list(read_varints(value))
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8:
            name = str(as_bytes(value), "utf-8")
        elif number == 13:
            entry = dict(read_fields(as_bytes(value)))
            external[str(as_bytes(entry[1]), "utf-8")] = str(as_bytes(entry.get(2, b"")), "utf-8")
    if data_type not in _BITS:
        raise ValueError(f"tensor {name!r:.80} has the unknown type {data_type}")
    if any(dim < 0 for dim in dims):
        raise ValueError(f"tensor {name!r:.80} has the shape {dims}")
    nbytes = -(-math.prod(dims) * _BITS[data_type] // 8)
    if "location" in external and int(external.get("length", nbytes)) != nbytes:
        raise ValueError(f"tensor {name!r:.80} has {external['length']} bytes, needed {nbytes}")
    return Initializer(name, tuple(dims), nbytes, external.get("location"))
