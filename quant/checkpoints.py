"""A checkpoint where a float bundle is needed: exported beside the target, and removed afterwards.

The exporter is in a layer above this one; it is found by an entry point, as commands are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..runtime.errors import BackendError
from .reference import GROUP, is_bundle
from .staged_folder import check_target

ENTRY = "export"
ExportProgress = Callable[[int, int, str], None]  # bytes read, bytes to read, file


@contextmanager
def float_bundle(
    source: str, target: Path, progress: ExportProgress | None = None
) -> Iterator[Path]:
    """A float bundle for the length of a block: `source` itself, or an export of it.

    Args:
        source: a bundle, or a checkpoint's folder or hub id.
        target: what is made from it; the export lies beside it, hidden.
        progress: of the export.

    Raises:
        BackendError: no exporter is installed.
        ValueError: the checkpoint can't be exported, or the target is no place for a bundle.
        OSError: no space for twice the checkpoint.
    """
    if is_bundle(source):
        yield Path(source)
        return
    check_target(target)  # before the long work
    path = target.absolute().parent / f".{target.absolute().name}.float"
    try:
        _find_exporter(source)(source, path, None, progress)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _find_exporter(source: str) -> Callable[..., Any]:
    for entry in entry_points(group=GROUP, name=ENTRY):
        return entry.load()
    raise BackendError(
        f"{source} is no bundle, and no exporter is installed here: pip install 'vlmedge[export]', "
        "or export it first"
    )
