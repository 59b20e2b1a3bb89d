"""Allow one writer for each target; a second one learns at once who is at work, and where.

The lock is the kernel's, on a small file beside the target: it goes with the process that holds it,
however that ends, and a file that a killed one left behind is taken over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

# What flock says where a file system has no locks
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# Targets that this call chain has locked: a command locks what its steps lock again
_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())


@contextmanager
def locked_target(target: Path) -> Iterator[None]:
    """Keep other writers of `target` off for the length of a block.

    Within the block the same thread may lock the same target again.

    Args:
        target: a file or folder, there or not; the folder around it is.

    Raises:
        ValueError: another process or thread writes it (says which), or the folder around it is
            missing.
        OSError: the lock can't be made, or the file system has no locks.
    """
    path = name_lock(target)
    if path in _held.get():
        yield
        return
    with _open_locked(path, target) as file:
        _describe(file)
        token = _held.set(_held.get() | {path})
        try:
            yield
        finally:
            _held.reset(token)
            path.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone


def find_parent(target: Path) -> Path:
    """The folder around a target.

    Raises:
        ValueError: it is missing.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{parent} is no directory: make it first")
    return parent


def name_lock(target: Path) -> Path:
    """The file beside a target that is locked; the same by whatever path the target is named.

    Raises:
        ValueError: the folder around the target is missing.
    """
    place = target.absolute()
    if place.name in ("", ".."):
        place = place.resolve()
    return find_parent(place).resolve() / f".{place.name}.lock"


def take_lock(file: IO[Any], place: Path, *, wait: bool = True) -> bool:
    """Lock an open file; False: another has it, and there is no waiting.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise OSError(
            error.errno,
            f"the file system there has no locks ({error.strerror}), which keep two writers "
            "apart: name a target on another one and copy it afterwards",
            str(place),
        ) from error
    return True


@contextmanager
def _open_locked(path: Path, target: Path) -> Iterator[IO[str]]:
    while True:
        with _open(path) as file:
            if not take_lock(file, target, wait=False):
                raise ValueError(
                    f"{_read_holder(file)} writes {target}: wait for it, or name another target"
                )
            if os.fstat(file.fileno()).st_nlink:
                yield file
                return
        # its holder removed it between the two: there is another now, or none


def _open(path: Path) -> IO[str]:
    try:
        # Not to write it anew: what the holder wrote into it is for those who are refused
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError as error:
        if not path.exists():
            raise
        raise OSError(
            error.errno, "another user's lock: who has made it writes there, or did", str(path)
        ) from error
    return os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")


def _describe(file: IO[str]) -> None:
    """Write who holds the lock."""
    holder = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]) if sys.argv else "",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    file.truncate(0)
    json.dump(holder, file)
    file.flush()


def _read_holder(file: IO[str]) -> str:
    """Who holds it; it may be about to write that."""
    try:
        holder = json.loads(file.read(1 << 12))
        keys = ("command", "pid", "host", "since")
        # It may be another user's: no line's end or escape sequence of theirs
        command, pid, host, since = (
            "".join(filter(str.isprintable, str(holder[key])))[:80] for key in keys
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    place = f"pid {pid}" if host == socket.gethostname() else f"pid {pid} on {host}"
    return f"another process ({command}, {place}, since {since})"
