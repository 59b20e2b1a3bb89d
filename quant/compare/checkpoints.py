"""Export a checkpoint where a float bundle is needed, and remove the export afterwards.

The exporter is in a layer above this one; it is found by an entry point, as commands are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ...runtime.errors import BackendError
from ..files.bundle_target import check_target
from ..files.locked_folder import locked_folder, remove_stale
from ..files.target_lock import find_parent, locked_target
from .reference import GROUP, is_bundle

ENTRY = "export"
FLOAT_NAME = "float"  # of the export, in a folder of its own
ExportProgress = Callable[[int, int, str], None]  # bytes read, bytes to read, file


@contextmanager
def float_bundle(
    source: str, target: Path, progress: ExportProgress | None = None
) -> Iterator[Path]:
    """A float bundle for the length of a block: `source` itself, or an export of it.

    Args:
        source: a bundle, or a checkpoint's folder or hub id.
        target: what is made from it, locked until the block ends; the export lies beside it,
            hidden.
        progress: of the export.

    Raises:
        BackendError: no exporter is installed.
        ValueError: the checkpoint can't be exported, the target is no place for a bundle, or
            another process writes it.
        OSError: no space for twice the checkpoint.
    """
    check_target(target, source)  # before the long work
    with locked_target(target):
        if is_bundle(source):
            yield Path(source)
            return
        parent, prefix = find_parent(target), f".{target.absolute().name}.float-"
        remove_stale(parent, prefix)
        with locked_folder(parent, prefix) as folder:
            path = folder / FLOAT_NAME
            _find_exporter(source)(source, path, None, progress)
            yield path


def _find_exporter(source: str) -> Callable[..., Any]:
    for entry in entry_points(group=GROUP, name=ENTRY):
        return entry.load()
    raise BackendError(
        f"{source} is no bundle, and no exporter is installed here: pip install 'vlmedge[export]', "
        "or export it first"
    )
