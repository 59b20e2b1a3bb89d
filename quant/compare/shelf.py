"""Arrays that have to wait for their other half: in a temporary folder, gone when it is closed.

A killed process leaves its folder in TMPDIR; the next one that makes such a folder removes it.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.locked_folder import locked_folder, remove_stale

# Older versions had no locks in theirs, and other names: those are left alone
PREFIX = "vlmedge-work-"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in TMPDIR for the length of a block; what killed processes left there is removed.

    Raises:
        OSError: there is no such folder to write in.
    """
    parent = Path(tempfile.gettempdir())
    remove_stale(parent, PREFIX)
    with locked_folder(parent, PREFIX) as folder:
        yield folder


class ArrayShelf:
    """Groups of named arrays, by a name that can be a file's."""

    def __init__(self) -> None:
        """Make room in the temporary folder."""
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(temporary_folder())

    def put(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a group of arrays, any[...] each, by their names.

        Raises:
            OSError: the disk is full; says where to find another.
        """
        path = self._path(name)
        try:
            np.savez(path, **arrays)  # type: ignore[arg-type]  # of names it takes as options
        except OSError as error:
            cause = error.strerror or error  # numpy's own have no number
            reason = f"{cause}, for what the reference puts out; set TMPDIR to more room"
            raise OSError(error.errno or errno.ENOSPC, reason, str(path.parent)) from error

    def read(self, name: str) -> dict[str, NDArray[Any]]:
        """A group as it was put: any[...] by name."""
        with np.load(self._path(name)) as arrays:
            return dict(arrays)

    def remove(self, name: str) -> None:
        """Give a group's room back."""
        self._path(name).unlink()

    def close(self) -> None:
        """Remove everything."""
        self._stack.close()

    def __enter__(self) -> ArrayShelf:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"
