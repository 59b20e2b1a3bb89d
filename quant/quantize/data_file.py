"""Write the initializers of quantized graphs as one data file: new ones, and copies of old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...runtime.bundle.manifest import FileRecord
from ...runtime.errors import BundleError
from ...runtime.files.regular_file import open_regular
from ..files.hashed_file import HashedFile, align
from ..graph.files import locate
from .rewrite import RewrittenGraph

INLINE_BYTES = 64  # scalars stay in the graph file
COPY_BYTES = 1 << 20

Advance = Callable[[int], None]  # called with a number of bytes just written


@dataclass(frozen=True, slots=True)
class _Item:
    """One tensor of the file: an array, or bytes of a file of the float bundle."""

    offset: int
    nbytes: int
    source: NDArray[Any] | tuple[str, int]


class BundleData:
    """External data of one or more graphs, laid out before anything is written."""

    def __init__(self, name: str, source: Path) -> None:
        """Name the file; `source` is the float bundle's folder."""
        self.name = name
        self.nbytes = 0
        self._source = source
        self._items: dict[str, _Item] = {}

    def attach(self, graph: RewrittenGraph) -> onnx.ModelProto:
        """Lay out a graph's initializers and put references to them into it.

        Tensors of the same name are stored once: the two vision graphs share their weights.
        """
        model = graph.model
        for tensor in list(model.graph.initializer):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                file, offset, length = locate(tensor)
                item = self._lay_out(tensor.name, length, (file, offset))
                _refer(tensor, self.name, item)
        for name, array in graph.tensors.items():
            model.graph.initializer.append(self._make_initializer(name, array))
        return model

    def find(self, name: str) -> int:
        """Offset of a tensor in the file, bytes."""
        return self._items[name].offset

    def write(self, folder: Path, advance: Advance) -> FileRecord:
        """Write the file and flush it to the disk.

        Raises:
            BundleError: a file of the float bundle ends too early.
            OSError: reading or writing failed.
        """
        with HashedFile(folder / self.name) as file:
            for item in self._items.values():
                file.pad_to(item.offset)
                for block in self._read(item):
                    file.write(block)
                    advance(len(block) if isinstance(block, bytes) else block.nbytes)
        assert file.record.bytes == self.nbytes  # the graphs refer to this layout
        return file.record

    def _make_initializer(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        array = np.asarray(array)
        if array.nbytes <= INLINE_BYTES and name not in self._items:
            return onnx.numpy_helper.from_array(array, name)
        tensor = onnx.TensorProto(name=name)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend(array.shape)
        stored = pack_nibbles(array) if tensor.data_type == onnx.TensorProto.INT4 else array
        _refer(tensor, self.name, self._lay_out(name, stored.nbytes, stored))
        return tensor

    def _lay_out(self, name: str, nbytes: int, source: NDArray[Any] | tuple[str, int]) -> _Item:
        if name not in self._items:
            item = _Item(align(self.nbytes, nbytes), nbytes, source)
            self._items[name] = item
            self.nbytes = item.offset + nbytes
        return self._items[name]

    def _read(self, item: _Item) -> Iterator[bytes | NDArray[Any]]:
        if isinstance(item.source, tuple):
            name, offset = item.source
            path, left = self._source / name, item.nbytes
            with open_regular(path) as file:
                file.seek(offset)
                while left:
                    block = file.read(min(left, COPY_BYTES))
                    if not block:
                        raise BundleError(f"{path} ends too early: copy or export it again")
                    left -= len(block)
                    yield block
            return
        flat = np.ascontiguousarray(item.source).reshape(-1).view(np.uint8)
        for start in range(0, len(flat), COPY_BYTES):
            yield flat[start : start + COPY_BYTES]


def pack_nibbles(array: NDArray[Any]) -> NDArray[np.uint8]:
    """int4 values, two to a byte, the even one in the low half, as ONNX stores them.

    int4[n] -> uint8[ceil(n / 2)].
    """
    flat = array.astype(np.int8).reshape(-1).view(np.uint8) & np.uint8(15)
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[::2] | flat[1::2] << 4, np.uint8)


def _refer(tensor: onnx.TensorProto, file: str, item: _Item) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", file), ("offset", item.offset), ("length", item.nbytes)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
