"""Find the pictures of a folder, in order: for clips, calibration and checks."""

from __future__ import annotations

import re
from pathlib import Path

# Names that count as pictures in a folder; what is in them decides whether they open.
SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg"),
        *(".mpo", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)


def list_pictures(folder: Path) -> list[Path]:
    """Files of a folder named like pictures, in the order of their names: 2 comes before 10."""
    found = [path for path in folder.iterdir() if is_picture_name(path.name) and path.is_file()]
    return sorted(found, key=lambda path: by_number(path.name))


def is_picture_name(name: str) -> bool:
    """Whether a file in a folder counts as a picture; hidden ones never do.

    Those that a Mac leaves on other disks ("._0001.png") bear a picture's suffix and hold none.
    """
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def by_number(name: str) -> list[tuple[int, str]]:
    """A sorting key that reads digits as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if i % 2 else -1, part) for i, part in enumerate(parts)]
