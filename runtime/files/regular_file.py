"""Files that are named to us are opened only if they are regular ones.

In the place of a picture or a bundle's file, a pipe, a device or a socket could make us wait or
read without an end. Links to regular files are as good as the files.
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
# Without these, opening a pipe waits for its writer, and a terminal becomes the process's own
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FLAGS |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def check_regular(path: str | Path) -> None:
    """Check that a path is a regular file, without opening it: a device may act when it is opened.

    Raises:
        OSError: there is no file, or it is of another kind; names the path and the kind.
        ValueError: a path with a zero byte.
    """
    _check(os.stat(path), path)


def name_other_kind(path: str | Path) -> str | None:
    """The kind of an existing path, such as "a pipe"; None for a regular file."""
    return _name(os.stat(path))


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading bytes; it never waits.

    Raises:
        OSError, ValueError: as `check_regular`, or we have no right to read it.
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
        OSError, ValueError: as `open_regular`, or the text is not UTF-8 (UnicodeDecodeError).
    """
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        return file.read()


def _name(status: os.stat_result) -> str | None:
    kind = stat.S_IFMT(status.st_mode)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "a special file")


def _check(status: os.stat_result, path: str | Path) -> None:
    if (name := _name(status)) is None:
        return
    hint = "; <(...) makes a pipe, too: write it to a file" if name == "a pipe" else ""
    number = errno.EISDIR if name == "a directory" else errno.EINVAL
    raise OSError(number, f"it is {name}, a regular file is needed{hint}", str(path))
