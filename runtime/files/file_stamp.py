"""Tell two files, or two states of one file, apart without reading them.

The time of the last status change (ctime) is left out: making a hard link, as `--link-weights`
does, sets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """A file's identity, size and time of the last change, from `stat`."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int

    def is_same_file(self, other: FileStamp) -> bool:
        """Whether both stamps are of one file, changed meanwhile or not."""
        return (self.device, self.inode) == (other.device, other.inode)


def read_stamp(path: Path) -> FileStamp | None:
    """The stamp of a file, links followed; None: there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    return FileStamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
