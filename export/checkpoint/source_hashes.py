"""Hashes of a checkpoint's files, taken while they are converted."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ...runtime.files.regular_file import open_regular
from .open import Checkpoint

HASH_BLOCK_BYTES = 4 << 20


class SourceHashes:
    """SHA-256 of config.json and the weight files, by threads that read beside the conversion.

    Both read the same bytes at about the same time, so the disk is read once where the checkpoint
    fits into the page cache.
    """

    def __init__(self, checkpoint: Checkpoint, num_threads: int = 1) -> None:
        """Plan the work; more threads than one only where nothing is converted beside them."""
        self._files = checkpoint.source_files
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="hash-source")
        self._hashes: dict[str, Future[str]] = {}

    def __enter__(self) -> SourceHashes:
        for name, path in self._files.items():
            self._hashes[name] = self._threads.submit(self._hash, path)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)

    def result(self) -> dict[str, str]:
        """Wait for the hashes, by file name.

        Raises:
            OSError: a file could not be read.
        """
        return {name: future.result() for name, future in self._hashes.items()}

    def _hash(self, path: Path) -> str:
        buffer, digest = bytearray(HASH_BLOCK_BYTES), hashlib.sha256()
        with open_regular(path) as file:
            while (count := file.readinto(buffer)) and not self._stop.is_set():
                digest.update(memoryview(buffer)[:count])
        return digest.hexdigest()
