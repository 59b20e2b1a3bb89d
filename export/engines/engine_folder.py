"""BUNDLE/engines/KEY: the old set, the new one or none is there, and never half of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...quant.files.hashed_file import HashedFile
from ...quant.files.staged_folder import replaced_folder
from ...quant.files.target_lock import locked_target
from ...runtime.backends.trt.engine_set import ENGINES_FOLDER
from ...runtime.bundle.manifest import FileRecord

WRITE_BYTES = 64 << 20  # of one write: what is hashed and flushed while the next is copied


def name_set(sm: str, builder: str, version: str, dtype: str) -> str:
    """KEY: "sm87-tensorrt10.3.0-bfloat16"."""
    return f"sm{sm.replace('.', '')}-{builder}{version}-{dtype}"


@contextmanager
def staged_set(bundle: Path, name: str) -> Iterator[Path]:
    """A temporary folder that becomes BUNDLE/engines/NAME if the block ends without an error.

    What builds that were killed left behind is removed first.

    Raises:
        ValueError: another process builds the same set.
        OSError: the bundle is on a disk that can't be written.
    """
    parent = bundle / ENGINES_FOLDER
    parent.mkdir(exist_ok=True)
    try:
        with locked_target(parent / name), replaced_folder(parent / name) as folder:
            yield folder
    finally:
        with suppress(OSError):  # other sets are in it
            parent.rmdir()


def write_engine(path: Path, plan: Any) -> FileRecord:
    """A new file with what a buffer holds, hashed and flushed to the disk."""
    content = np.frombuffer(plan, np.uint8)
    with HashedFile(path) as file:
        for start in range(0, len(content), WRITE_BYTES):
            file.write(content[start : start + WRITE_BYTES])
    return file.record
