"""Files that are named to us are opened only if they are regular ones.

A pipe, a device or a socket in the place of a picture or a bundle's file would be waited for, or
read without an end. Links to regular files are as good as those.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}
# A pipe whose other end nobody holds would be waited for; a terminal would become the process's own
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FLAGS |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def check_regular(path: str | Path) -> None:
    """See that a path is a regular file, without opening it: a device may act when it is opened.

    Raises:
        OSError: there is none, or it is something else; with the path, and saying what it is.
        ValueError: a path with a zero byte.
    """
    _check(os.stat(path), path)


def name_other_kind(path: str | Path) -> str | None:
    """What an existing path is that is no regular file, "a pipe"; None for a regular one."""
    return _name(os.stat(path))


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading bytes; it never waits.

    Raises:
        OSError, ValueError: as `check_regular`, or it may not be read.
    """
    check_regular(path)
    descriptor = os.open(path, _FLAGS)
    try:
        _check(os.fstat(descriptor), path)  # it may have been replaced in between
    except OSError:
        os.close(descriptor)
        raise
    return io.BufferedReader(io.FileIO(descriptor, "rb"))


def read_regular(path: str | Path) -> bytes:
    """The bytes of a regular file; errors as of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_regular_text(path: str | Path) -> str:
    """The text of a regular file in UTF-8, every line end as a newline.

    Raises:
        OSError, ValueError: as `open_regular`, or it is not UTF-8 (a UnicodeDecodeError).
    """
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        return file.read()


def _name(status: os.stat_result) -> str | None:
    kind = stat.S_IFMT(status.st_mode)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "no regular file")


def _check(status: os.stat_result, path: str | Path) -> None:
    if (name := _name(status)) is None:
        return
    hint = "; what <(...) makes is a pipe, too: write it to a file" if name == "a pipe" else ""
    number = errno.EISDIR if name == "a directory" else errno.EINVAL
    raise OSError(number, f"it is {name}, a regular file is needed{hint}", str(path))
