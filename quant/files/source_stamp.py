"""Notice that a source's files changed while they were read, so that no two models are mixed.

A checkpoint is read for minutes, a bundle that is quantized for hours, file by file and some files
several times. Where another process writes to one meanwhile, what comes out is neither the old
model nor the new one; size, time of writing and inode tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.manifest import MANIFEST_NAME, Manifest
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.files.file_stamp import FileStamp, read_stamp


@dataclass(frozen=True, slots=True)
class SourceStamp:
    """Files as they were; a file that was not there must not appear."""

    facts: Mapping[Path, FileStamp | None]  # None: there is no such file

    def __or__(self, other: SourceStamp) -> SourceStamp:
        """Both; of a file that is in both, what was seen first."""
        return SourceStamp({**other.facts, **self.facts})

    def check(self) -> None:
        """See that nothing has changed.

        Raises:
            ValueError: names the file and what is different.
        """
        for path, before in self.facts.items():
            now = read_stamp(path)
            if now != before:
                raise ValueError(
                    f"{path} changed while it was read ({_compare(before, now)}): nothing was "
                    "written; run it again when no other process writes there"
                )


def stamp_files(paths: Iterable[Path]) -> SourceStamp:
    """Look at files before they are read."""
    return SourceStamp({path: read_stamp(path) for path in paths})


def read_stamped(bundle: Path) -> tuple[Manifest, SourceStamp]:
    """A bundle's manifest, and its stamp with all the files that it lists.

    Raises:
        BundleError: as read_manifest.
    """
    stamp = stamp_files([bundle / MANIFEST_NAME])
    manifest = read_manifest(bundle)
    return manifest, stamp | stamp_files(bundle / name for name in manifest.files)


def _compare(before: FileStamp | None, now: FileStamp | None) -> str:
    if before is None:
        return "it was not there before"
    if now is None:
        return "it is gone"
    if not before.is_same_file(now):
        return "it is another file"
    if before.num_bytes != now.num_bytes:
        return f"{before.num_bytes} bytes before, {now.num_bytes} now"
    return "it was written to"
