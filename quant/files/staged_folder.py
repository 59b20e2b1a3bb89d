"""Writes a folder so that the old one, the new one or none is there, and never half of one.

Everything goes into a temporary folder beside the target, is flushed to the disk, and the two are
swapped by one system call. A temporary folder is locked by its writer until it has its name; one
whose writer is gone is removed by the next export to the same target.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .bundle_target import check_target
from .locked_folder import LOCK_NAME, locked_folder
from .locked_folder import remove_stale as remove_unlocked
from .named_errors import naming
from .target_lock import find_parent, locked_target

DISK_MARGIN_BYTES = 16 << 20  # graphs, tokenizer, manifest and the file system's own
_RENAME_EXCHANGE = 2  # flag of renameat2(2)
_AT_FDCWD = -100


def check_free_space(target: Path, num_bytes: int) -> None:
    """Refuse to start what would not fit; the old bundle stays until the new one is complete.

    Raises:
        OSError: says what is needed and what is free.
    """
    free = shutil.disk_usage(find_parent(target)).free
    needed = num_bytes + DISK_MARGIN_BYTES
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the bundle needs {needed / 1e9:.2f} GB on the disk, {free / 1e9:.2f} GB are free: "
            "make room, or choose a smaller weight format",
            str(target),
        )


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes the bundle `target` if the block ends without an error.

    Raises:
        ValueError: another process writes the same target, or it holds what must not be lost.
    """
    with locked_target(target), replaced_folder(target) as folder:
        yield folder
        check_target(target)  # minutes have passed


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target`, whatever that is now, if the block ends well.

    Several writers do no harm to one another: each has a folder of its own, and the last one stays.
    """
    remove_stale(target)
    with locked_folder(find_parent(target), _prefix(target)) as folder:
        folder.chmod(0o777 & ~_umask())  # mkdtemp's is 0700
        yield folder
        _sync(folder)
        _swap(folder, target)
        # Not before: whoever finds the folder without its lock takes it for a leftover
        (target / LOCK_NAME).unlink(missing_ok=True)
        _sync(target.absolute().parent)


def remove_stale(target: Path) -> list[Path]:
    """Remove what killed exports to this target left behind; returns the removed folders."""
    return remove_unlocked(find_parent(target), _prefix(target))


def write_text(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    with naming(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _prefix(target: Path) -> str:
    return f".{target.absolute().name}.partial-"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(folder: Path, target: Path) -> None:
    """Put `folder` in the place of `target`; an old target is moved to where it will be removed."""
    while not _exchange(folder, target):
        # There is no target yet; or no such call on this system, and between the two renames there
        # is none, but both are whole.
        with locked_folder(find_parent(target), _prefix(target)) as aside:
            old = aside / target.name
            try:
                with suppress(FileNotFoundError):
                    target.rename(old)
                folder.rename(target)
            except BaseException as error:  # an interrupt as well
                if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                    continue  # another writer has just taken the name
                with suppress(OSError):  # there was none, or another writer has put its own there
                    old.rename(target)
                raise
        return


def _exchange(first: Path, second: Path) -> bool:
    """renameat2(RENAME_EXCHANGE): swap two paths at once. False where the system can't."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
