"""Make a temporary folder that is locked while its maker lives, and removed by others after that.

The kernel gives a lock back however a process ends, kill -9 included: a folder that nobody holds is
a leftover, and the next one who makes such a folder in the same place removes it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .target_lock import take_lock

LOCK_NAME = ".lock"


@contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder that nobody takes for a leftover; removed at the end.

    Args:
        parent: where it is made.
        prefix: what its name begins with, and no other kind of folder's there.

    Raises:
        OSError: no room, no right to write, or a file system without locks.
    """
    folder, lock = _make_locked(parent, prefix)
    try:
        yield folder
    finally:
        _remove(folder)
        lock.close()


def remove_stale(parent: Path, prefix: str) -> list[Path]:
    """Remove what makers that are gone left behind; returns the removed folders.

    Other users' folders and links are passed over: the temporary folder is everybody's.
    """
    removed = []
    for folder in parent.glob(glob.escape(prefix) + "*"):
        if not _is_own_folder(folder):
            continue
        try:
            # Made where the maker was killed before: removing takes the lock as well as making
            lock = (folder / LOCK_NAME).open("a")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # removed or renamed meanwhile
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its maker is at work, or there are no locks to tell by
            shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def is_at_work(folder: Path) -> bool:
    """Whether a folder's maker lives."""
    try:
        with (folder / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock, or no lock can be told
        return False
    return False


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _make_locked(parent: Path, prefix: str) -> tuple[Path, TextIO]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = (folder / LOCK_NAME).open("a")
            take_lock(lock, folder)
        except FileNotFoundError:
            continue  # another maker removed it before there was a lock
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if os.fstat(lock.fileno()).st_nlink:
            return folder, lock
        lock.close()  # removed between the two


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
