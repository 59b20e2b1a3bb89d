"""Find the pictures of a folder, in order: for clips, calibration and checks."""

from __future__ import annotations

import re
from pathlib import Path

# Suffixes that make a file of a folder count as a picture; its content decides whether it opens.
SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg"),
        *(".mpo", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)


def list_pictures(folder: Path) -> list[Path]:
    """Files of a folder that have a picture's suffix, sorted by name: 2.png comes before 10.png."""
    found = [path for path in folder.iterdir() if is_picture_name(path.name) and path.is_file()]
    return sorted(found, key=lambda path: by_number(path.name))


def is_picture_name(name: str) -> bool:
    """Whether a file of this name counts as a picture; hidden files never do.

    A Mac leaves hidden files on other disks ("._0001.png") that have a picture's suffix and hold
    no picture.
    """
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def by_number(name: str) -> list[tuple[int, str]]:
    """A key for sorting names in which runs of digits count as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if i % 2 else -1, part) for i, part in enumerate(parts)]
