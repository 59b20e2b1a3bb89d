"""Writes a single file whole or not at all: under a temporary name, flushed, then renamed.

The temporary file is locked by its writer; what a killed one left is removed by the next.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...runtime.files.regular_file import name_other_kind
from .named_errors import naming


def check_replaceable(path: Path) -> None:
    """See that a path is free or a regular file's: a device would be gone, not written to.

    Raises:
        OSError: it is a pipe, a device, a socket or a folder.
    """
    if path.exists() and (kind := name_other_kind(path)):
        raise OSError(errno.EINVAL, f"it is {kind}, only a regular file is replaced", str(path))


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place if the block ends without an error.

    Raises:
        OSError: the folder is missing, the disk is full, or something else than a regular file has
            the name; what was there stays as it was.
    """
    path = path.absolute()
    check_replaceable(path)
    _remove_stale(path)
    lock, temporary = _make_locked(path)
    try:
        with naming(path, may_read=True):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's is 0600
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def _remove_stale(path: Path) -> None:
    """Remove what writers of `path` that were killed left beside it."""
    for file in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        with suppress(OSError):  # its writer is at work, or it is another user's
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                continue
            handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
            finally:
                os.close(handle)


def _make_locked(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, locked until its handle is closed; where there are locks."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
        with suppress(OSError):  # without locks nobody can take it for a leftover
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another writer removed it between the two


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, replacing an old one."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
