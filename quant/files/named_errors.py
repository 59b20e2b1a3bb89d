"""Name the file in errors of writing: the system only says "No space left on device"."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Only writing can fail with these: no space, no quota, over the limit of a file's size
OF_WRITING = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


@contextmanager
def naming(path: Path, *, may_read: bool = False) -> Iterator[None]:
    """Add the path to an OSError of the block that has none.

    Args:
        path: of the file that the block writes.
        may_read: the block reads other files, too: only errors that writing alone can have are
            taken for this file's.

    Raises:
        OSError: the block's, with the path; one that named its file goes on as it is.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or (may_read and error.errno not in OF_WRITING):
            raise
        if error.errno is None:  # numpy's, of an array that was written in part
            raise OSError(f"{path} can't be written, the disk may be full: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
