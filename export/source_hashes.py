"""Hashes of a checkpoint's files, taken while they are converted."""

from __future__ import annotations

import hashlib
import threading

from .checkpoint import Checkpoint

HASH_BLOCK_BYTES = 4 << 20


class SourceHashes:
    """SHA-256 of config.json and the weight files, by a thread that reads beside the conversion.

    Both read the same bytes at about the same time, so the disk is read once where the checkpoint
    fits into the page cache.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = checkpoint.source_files
        self._hashes: dict[str, str] = {}
        self._error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hash-source")

    def __enter__(self) -> SourceHashes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def result(self) -> dict[str, str]:
        """Wait for the hashes, by file name."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._hashes

    def _run(self) -> None:
        buffer = bytearray(HASH_BLOCK_BYTES)
        try:
            for name, path in self._files.items():
                digest = hashlib.sha256()
                with path.open("rb", buffering=0) as file:
                    while (count := file.readinto(buffer)) and not self._stop.is_set():
                        digest.update(memoryview(buffer)[:count])
                self._hashes[name] = digest.hexdigest()
        except OSError as error:
            self._error = error
