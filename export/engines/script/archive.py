"""Pack a bundle and its build script into one tar to carry to the device.

The same bundle and script give the same bytes: names in order, no owners, no times. Nothing is
compressed: weights are noise to a compressor.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ....quant.files.atomic import replaced_file
from ....runtime.bundle.manifest import MANIFEST_NAME, Manifest

_FILE_MODE = 0o644
_SCRIPT_MODE = 0o755


def write_archive(
    archive: Path,
    bundle: Path,
    manifest: Manifest,
    script: tuple[str, bytes],
    made: Mapping[str, bytes],
    *,
    before_publishing: Callable[[], None] = lambda: None,
) -> None:
    """Write the tar: the script, and beside it the bundle without engines that it may hold.

    Args:
        archive: the tar.
        bundle: the folder.
        manifest: its manifest, which lists its files.
        script: its name and content.
        made: name in the tar -> content, of what else the script needs.
        before_publishing: called when all is written; what it raises leaves the old tar.

    Raises:
        OSError: a file of the bundle is missing, or the disk is full.
    """
    folder = bundle.absolute().name
    with (
        replaced_file(archive) as temporary,
        tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar,
    ):
        _add_content(tar, *script, _SCRIPT_MODE)
        for name in (MANIFEST_NAME, *sorted(manifest.files)):
            _add(tar, bundle / name, f"{folder}/{name}", _FILE_MODE)
        for name, content in sorted(made.items()):
            _add_content(tar, name, content, _FILE_MODE)
        before_publishing()


def _add(tar: tarfile.TarFile, path: Path, name: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = mode
    with path.open("rb") as file:
        tar.addfile(info, file)


def _add_content(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = mode
    tar.addfile(info, io.BytesIO(content))
