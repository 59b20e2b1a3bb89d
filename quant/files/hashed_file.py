"""Write a file of a bundle, hashed and flushed to the disk while it is written."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import FileRecord
from .named_errors import naming

# Written back while the next bytes are made, so that the last wait is short.
FLUSH_BYTES = 256 << 20
ALIGNMENT = 64  # bytes: a cache line, the widest vector load
PAGE_ALIGNMENT = 4096  # for tensors over a page: they are mapped into memory on the device


def align(position: int, nbytes: int) -> int:
    """Where a tensor of `nbytes` begins, at `position` or a little behind."""
    alignment = PAGE_ALIGNMENT if nbytes >= PAGE_ALIGNMENT else ALIGNMENT
    return -(-position // alignment) * alignment


class HashedFile:
    """A new file that threads hash and flush to the disk while the next bytes are made.

    Used as a context manager; `record` is there after it.
    """

    record: FileRecord

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb")
        self._position = 0
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | memoryview | None] = queue.Queue(maxsize=4)
        self._thread = threading.Thread(target=self._hash_queue, name="hash")
        self._thread.start()
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushing: Future | None = None
        self._flushed = 0

    def __enter__(self) -> HashedFile:
        return self

    def write(self, data: bytes | NDArray) -> None:
        """Append bytes, or those of an array.

        Args:
            data: bytes, or any[...]; an array must not change afterwards.
        """
        view = data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data
        with naming(self._path):
            self._file.write(view)
        self._queue.put(view)
        self._position += len(view)
        if self._position - self._flushed >= FLUSH_BYTES and (
            self._flushing is None or self._flushing.done()
        ):
            self._flushed = self._position
            self._flushing = self._flusher.submit(os.fdatasync, self._file.fileno())

    def pad_to(self, offset: int) -> None:
        """Append zeros up to `offset`."""
        if offset > self._position:
            self.write(bytes(offset - self._position))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._flusher.shutdown(wait=True)
        try:
            if kind is None:
                with naming(self._path):
                    if self._flushing is not None:
                        self._flushing.result()  # the kernel reports a failed write only once
                    self._file.flush()
                    os.fsync(self._file.fileno())
        finally:
            with suppress(OSError):  # of what an earlier error has left unwritten
                self._file.close()
        self.record = FileRecord(self._position, self._hash.hexdigest())

    def _hash_queue(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)


def write_small(path: Path, content: bytes) -> FileRecord:
    """A new file that is written at once, and flushed to the disk."""
    with naming(path), path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())
