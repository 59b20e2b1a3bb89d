"""Every file of a bundle against the hash that its manifest has of it.

What is made of a damaged bundle would get fresh, valid hashes, and nobody could tell any more. So
whatever makes or measures something of a bundle compares it first, or beside its own reading.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from types import TracebackType

from ..errors import BundleError
from ..files.file_stamp import FileStamp, read_stamp
from .guard import BundleGuard
from .inspection import FileState, check_file
from .manifest import MANIFEST_NAME, Manifest

# SHA-256 of one file can't be shared out; a bundle has two large ones and a table.
NUM_THREADS = max(1, min(4, os.cpu_count() or 1))
_TELL_EVERY_S = 0.1
# A file that was written less than this ago may be written again at what `stat` calls the same
# time: some file systems count in steps of two seconds.
_SETTLED_NS = 3 * 10**9
# What this process has compared and found right: a search or a sweep compares one float bundle
# dozens of times. (state of a file, its SHA-256)
_found_right: set[tuple[FileStamp, str]] = set()

# (bytes compared so far, bytes in all)
OnBytes = Callable[[int, int], None]


class HashCheck:
    """Hashes a bundle's files in threads; used as a context manager.

    It begins at once. Inside, `wait` gives the verdict: before the work, where the work is long,
    or after it, where it reads the same bytes and must write nothing if they are wrong. If the work
    itself fails with a ValueError or the like, leaving the context gives the verdict, too: what a
    damaged file led to is told as the damage that it is.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        num_threads: int = NUM_THREADS,
        *,
        read_again: bool = False,
    ) -> None:
        """Stamp the files; nothing is read yet.

        Args:
            folder: of the bundle.
            manifest: its manifest.
            num_threads: that hash.
            read_again: read also what this process has compared already and that, as far as `stat`
                tells, is the same since.
        """
        self._folder = folder
        self._records = manifest.files
        self._guard = BundleGuard(folder, (MANIFEST_NAME, *manifest.files))
        self._read_again = read_again
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="hash-bundle")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._num_read = 0
        self._is_told = False
        self._states: dict[str, Future[FileState]] = {}

    def __enter__(self) -> HashCheck:
        # The largest first: it takes the longest
        names = sorted(self._records, key=lambda name: -self._records[name].bytes)
        for name in names:
            self._states[name] = self._threads.submit(self._hash, name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            is_about_content = isinstance(error, Exception) and not isinstance(error, OSError)
            if is_about_content and not self._is_told:
                self.wait()
        finally:
            self._stop.set()
            self._threads.shutdown(cancel_futures=True)

    def wait(self, on_bytes: OnBytes | None = None) -> None:
        """Wait until every file is compared.

        Args:
            on_bytes: called from this thread while it waits.

        Raises:
            BundleError: a file is another than the manifest says.
            OSError: a file can't be read.
        """
        self._is_told = True
        total = sum(record.bytes for record in self._records.values())
        left = set(self._states.values())
        while left:
            done, left = wait_for(left, _TELL_EVERY_S if on_bytes else None)
            for state in done:
                state.result()
            if on_bytes is not None:
                on_bytes(self._num_read, total)
        bad = {n: s.result() for n, s in self._states.items() if s.result() != "ok"}
        if bad:
            names = [name for name in self._records if name in bad]  # in the manifest's order
            verb = f"and {len(names) - 1} more are" if len(names) > 1 else "is"
            raise BundleError(
                f"{self._folder / names[0]} {verb} not what the manifest says ({bad[names[0]]}): "
                "the bundle is damaged; copy or export it again"
            )

    def check_unchanged(self) -> None:
        """See that the files still are those that were compared, as far as `stat` tells.

        Raises:
            BundleError: one has changed, or was replaced.
        """
        state, name = self._guard.find_change()
        if state != "same":
            raise BundleError(
                f"{self._folder / name} was {state} while it was read: leave the bundle alone and "
                "try again"
            )

    def _hash(self, name: str) -> FileState:
        path, record = self._folder / name, self._records[name]
        stamp, now_ns = read_stamp(path), time.time_ns()
        key = None if stamp is None else (stamp, record.sha256)
        if key in _found_right and not self._read_again:
            self._count(record.bytes)
            return "ok"
        state = check_file(self._folder, name, record, on_bytes=self._count).state
        is_settled = stamp is not None and now_ns - stamp.modified_ns > _SETTLED_NS
        if state == "ok" and key is not None and is_settled and read_stamp(path) == stamp:
            _found_right.add(key)
        return state

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._num_read += num_bytes
        if self._stop.is_set():
            raise InterruptedError("the check of hashes was given up")


def check_hashes(
    folder: Path,
    manifest: Manifest,
    on_bytes: OnBytes | None = None,
    *,
    read_again: bool = False,
) -> HashCheck:
    """Compare every file of a bundle with its manifest, before anything else is done with it.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        on_bytes: called while it goes on.
        read_again: see HashCheck.

    Returns:
        What can be asked later (`check_unchanged`) whether the files still are those.

    Raises:
        BundleError: a file is another than the manifest says.
        OSError: a file can't be read.
    """
    with HashCheck(folder, manifest, read_again=read_again) as check:
        check.wait(on_bytes)
    return check
