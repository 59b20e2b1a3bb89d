"""Tell two files, or two states of one file, apart without reading them.

Times of change (ctime) are left out: a hard link to a file, which `--link-weights` makes, sets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """A file as `stat` sees it."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int

    def is_same_file(self, other: FileStamp) -> bool:
        """Whether both are of one file, in whatever state."""
        return (self.device, self.inode) == (other.device, other.inode)


def read_stamp(path: Path) -> FileStamp | None:
    """The stamp of a file, links followed; None: there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    return FileStamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
