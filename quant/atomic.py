"""Writes a single file whole or not at all: under a temporary name, flushed, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.regular_file import name_other_kind
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
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
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


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, replacing an old one."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
