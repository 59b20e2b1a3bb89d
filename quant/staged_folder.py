"""Writes a folder so that the old one, the new one or none is there, and never half of one.

Everything goes into a temporary folder beside the target, is flushed to the disk, and the two are
swapped by one system call. A temporary folder is locked by its writer until it has its name; one
whose writer is gone is removed by the next export to the same target.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ..runtime.manifest import MANIFEST_NAME
from .named_errors import naming

LOCK_NAME = ".lock"
DISK_MARGIN_BYTES = 16 << 20  # graphs, tokenizer, manifest and the file system's own
_RENAME_EXCHANGE = 2  # flag of renameat2(2)
_AT_FDCWD = -100


def check_target(target: Path) -> None:
    """Refuse a target that holds something else than a bundle, or that nothing can stand in.

    Raises:
        ValueError: a file, a folder with other content, or a folder that is missing around it.
    """
    _parent(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"{target} is no directory: name a new one or an old bundle")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_NAME).is_file():
        raise ValueError(
            f"{target} is a directory that is no bundle (no {MANIFEST_NAME}): it is left alone"
        )


def check_free_space(target: Path, num_bytes: int) -> None:
    """Refuse to start what would not fit; the old bundle stays until the new one is complete.

    Raises:
        OSError: says what is needed and what is free.
    """
    free = shutil.disk_usage(_parent(target)).free
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
    """A temporary folder that becomes the bundle `target` if the block ends without an error."""
    with replaced_folder(target) as folder:
        yield folder
        check_target(target)  # minutes have passed


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target`, whatever that is now, if the block ends well.

    Several writers may share a target: each has a folder of its own, and the last one stays.
    """
    remove_stale(target)
    with _locked_folder(target) as folder:
        folder.chmod(0o777 & ~_umask())  # mkdtemp's is 0700
        yield folder
        _sync(folder)
        _swap(folder, target)
        # Not before: whoever finds the folder without its lock takes it for a leftover
        (target / LOCK_NAME).unlink(missing_ok=True)
        _sync(target.absolute().parent)


def remove_stale(target: Path) -> list[Path]:
    """Remove what killed exports to this target left behind; returns the removed folders."""
    removed = []
    for folder in _parent(target).glob(glob.escape(_prefix(target)) + "*"):
        try:
            # Made where the writer was killed before: removing takes the lock as well as writing
            lock = (folder / LOCK_NAME).open("a")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # removed or renamed meanwhile, or another user's
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another export to the same target is at work
            shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def write_text(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    with naming(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _parent(target: Path) -> Path:
    parent = target.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{parent} is no directory: make it first")
    return parent


def _prefix(target: Path) -> str:
    return f".{target.absolute().name}.partial-"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _locked_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that nobody takes for a leftover; removed at the end."""
    folder, lock = _make_locked(target)
    try:
        yield folder
    finally:
        _remove(folder)  # after a swap this is what was replaced
        lock.close()


def _make_locked(target: Path) -> tuple[Path, TextIO]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=_parent(target)))
        try:
            lock = (folder / LOCK_NAME).open("a")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue  # another writer removed it before there was a lock
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if os.fstat(lock.fileno()).st_nlink:
            return folder, lock
        lock.close()  # removed between the two


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _swap(folder: Path, target: Path) -> None:
    """Put `folder` in the place of `target`; an old target is moved to where it will be removed."""
    while not _exchange(folder, target):
        # There is no target yet; or no such call on this system, and between the two renames there
        # is none, but both are whole.
        with _locked_folder(target) as aside:
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
