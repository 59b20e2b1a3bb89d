"""Write weights as one file of raw bytes beside the graphs: laid out, then written and hashed.

The layout is known as soon as the graph is built, so the space needed is known before a byte is
written. Writing is a pipeline: a few threads read and convert blocks, the caller's thread writes
them in order, one thread hashes what was written.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import onnx_ir as ir
from numpy.typing import NDArray

from ...quant.files.hashed_file import HashedFile, align
from ...runtime.bundle.manifest import FileRecord
from .weights import Block, StoredTensor, Weight

NUM_WORKERS = min(4, os.cpu_count() or 1)
MAX_IN_FLIGHT = 2 * NUM_WORKERS  # blocks converted but not yet written

Progress = Callable[[int], None]  # called with a number of bytes just read


class DataFile:
    """External data of one or more graphs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nbytes = 0
        self._weights: list[tuple[Weight, list[int]]] = []
        self._tensors: dict[str, ir.ExternalTensor] = {}

    def add(self, weight: Weight) -> tuple[ir.ExternalTensor, ...]:
        """Lay out a weight; one that is already there (two graphs share it) is used again."""
        if weight.stored[0].name not in self._tensors:
            offsets = []
            for tensor in weight.stored:
                offset = align(self.nbytes, tensor.nbytes)
                self._tensors[tensor.name] = self._external(tensor, offset)
                self.nbytes = offset + tensor.nbytes
                offsets.append(offset)
            self._weights.append((weight, offsets))
        return tuple(self._tensors[tensor.name] for tensor in weight.stored)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """What was laid out, in order."""
        return tuple(weight for weight, _ in self._weights)

    def source_nbytes(self) -> int:
        """Bytes that writing will read, the unit of its progress."""
        return sum(source.nbytes for weight, _ in self._weights for source in weight.sources)

    def write(self, folder: Path, progress: Progress) -> FileRecord:
        """Write the file and flush it to the disk.

        Raises:
            ValueError: a tensor with values that can't be stored, by name.
            OSError: reading or writing failed.
        """
        with HashedFile(folder / self.name) as file:
            rest: list[list[NDArray]] = []
            for block, offsets, arrays in self._converted():
                weight = block.weight
                if not rest:
                    rest = [[] for _ in weight.stored[1:]]
                    file.pad_to(offsets[0])
                file.write(arrays[0])
                for kept, array in zip(rest, arrays[1:], strict=True):
                    kept.append(array)
                if block.is_last:
                    for kept, offset in zip(rest, offsets[1:], strict=True):
                        file.pad_to(offset)
                        for array in kept:
                            file.write(array)
                    rest = []
                progress(block.nbytes)
        assert file.record.bytes == self.nbytes  # the graphs refer to this layout
        return file.record

    def _converted(self) -> Iterator[tuple[Block, list[int], tuple[NDArray, ...]]]:
        """Blocks in file order, converted ahead by the workers."""
        waiting: deque[tuple[Block, list[int], Future]] = deque()
        workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="convert")
        try:
            for weight, offsets in self._weights:
                for block in weight.blocks():
                    waiting.append((block, offsets, workers.submit(block.encode)))
                    if len(waiting) >= MAX_IN_FLIGHT:
                        first, first_offsets, future = waiting.popleft()
                        yield first, first_offsets, future.result()
            while waiting:
                first, first_offsets, future = waiting.popleft()
                yield first, first_offsets, future.result()
        finally:
            workers.shutdown(wait=True, cancel_futures=True)

    def _external(self, tensor: StoredTensor, offset: int) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=tensor.name,
        )
