"""Arguments of `vlmedge run` -> the messages that ask the question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .file_like import MAX_STREAM_BYTES
from .standard_streams import read_bytes

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_pictures(paths: list[Path], *, is_stdin_taken: bool) -> list[Path | bytes]:
    """The pictures as given; of one that is called -, the bytes on stdin.

    Raises:
        ValueError: stdin is closed, empty or too large, or is asked for twice.
    """
    if is_stdin_taken + sum(str(path) == "-" for path in paths) > 1:
        raise ValueError("- is given more than once, but stdin can be read only once")
    pictures: list[Path | bytes] = []
    for path in paths:
        data = read_bytes(MAX_STREAM_BYTES) if str(path) == "-" else path
        if not data:
            raise ValueError("--image - reads a picture from stdin, which is empty")
        pictures.append(data)
    return pictures


def make_messages(
    prompt: str, images: Sequence[Path | bytes], frames: list[Path], system: str | None
) -> list[dict[str, Any]]:
    """One user turn: pictures, clip, question; a system turn before it if one is given."""
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in images]
    if frames:
        content.append({"type": "video", "video": frames})
    content.append({"type": "text", "text": prompt})
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def list_frames(paths: list[Path]) -> list[Path]:
    """The frames of a clip: files as given, a folder's pictures by name, 2.png before 10.png."""
    frames: list[Path] = []
    for path in paths:
        if not path.is_dir():
            frames.append(path)
            continue
        found = [entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise ValueError(f"{path} holds no pictures ({' '.join(IMAGE_SUFFIXES)})")
        frames += sorted(found, key=_natural_order)
    return frames


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
