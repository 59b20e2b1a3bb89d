"""What files were before they were read, and whether they are still that: one model, no mixture.

A checkpoint is read for minutes, a bundle that is quantized for hours, file by file and some files
several times. Where another process writes to one meanwhile, what comes out is neither the old
model nor the new one; size, time of writing and inode tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..runtime.manifest import MANIFEST_NAME, Manifest, read_manifest

# Size in bytes, time of the last change in ns, inode, device; None: there is no such file
Facts = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class SourceStamp:
    """Files as they were; a file that was not there must not appear."""

    facts: Mapping[Path, Facts | None]

    def __or__(self, other: SourceStamp) -> SourceStamp:
        """Both; of a file that is in both, what was seen first."""
        return SourceStamp({**other.facts, **self.facts})

    def check(self) -> None:
        """See that nothing has changed.

        Raises:
            ValueError: names the file and what is different.
        """
        for path, before in self.facts.items():
            now = _look_at(path)
            if now != before:
                raise ValueError(
                    f"{path} changed while it was read ({_compare(before, now)}): nothing was "
                    "written; run it again when no other process writes there"
                )


def stamp_files(paths: Iterable[Path]) -> SourceStamp:
    """Look at files before they are read."""
    return SourceStamp({path: _look_at(path) for path in paths})


def read_stamped(bundle: Path) -> tuple[Manifest, SourceStamp]:
    """A bundle's manifest, and its stamp with all the files that it lists.

    Raises:
        BundleError: as read_manifest.
    """
    stamp = stamp_files([bundle / MANIFEST_NAME])
    manifest = read_manifest(bundle)
    return manifest, stamp | stamp_files(bundle / name for name in manifest.files)


def _look_at(path: Path) -> Facts | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


def _compare(before: Facts | None, now: Facts | None) -> str:
    if before is None:
        return "it was not there before"
    if now is None:
        return "it is gone"
    if before[2:] != now[2:]:
        return "it is another file"
    if before[0] != now[0]:
        return f"{before[0]} bytes before, {now[0]} now"
    return "it was written to"
