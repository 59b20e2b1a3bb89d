"""Arrays that have to wait for their other half: in a temporary folder, gone when it is closed."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ArrayShelf:
    """Groups of named arrays, by a name that can be a file's."""

    def __init__(self) -> None:
        """Make room in the temporary folder."""
        self._folder = tempfile.TemporaryDirectory(prefix="vlmedge-")

    def put(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a group.

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
        """A group as it was put."""
        with np.load(self._path(name)) as arrays:
            return dict(arrays)

    def remove(self, name: str) -> None:
        """Give a group's room back."""
        self._path(name).unlink()

    def close(self) -> None:
        """Remove everything."""
        self._folder.cleanup()

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
        return Path(self._folder.name) / f"{name}.npz"
