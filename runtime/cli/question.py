"""Turn the arguments of `vlmedge run` into the messages that ask the question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..inputs.file_like import MAX_STREAM_BYTES
from ..inputs.picture_files import list_pictures
from ..terminal.standard_streams import read_bytes


def read_pictures(names: list[str], *, is_stdin_taken: bool) -> list[str | bytes]:
    """Paths and addresses as given, which `messages` reads; of one called -, the bytes on stdin.

    Raises:
        ValueError: stdin is closed, empty or too large, or is asked for twice.
    """
    if is_stdin_taken + names.count("-") > 1:
        raise ValueError("- is given more than once, but stdin can be read only once")
    pictures: list[str | bytes] = []
    for name in names:
        data = read_bytes(MAX_STREAM_BYTES) if name == "-" else name
        if not data:
            raise ValueError("--image - reads a picture from stdin, which is empty")
        pictures.append(data)
    return pictures


def make_messages(
    prompt: str, images: Sequence[str | Path | bytes], frames: list[Path], system: str | None
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
        found = list_pictures(path)
        if not found:
            raise ValueError(f"{path} holds no pictures, needed the frames of a clip")
        frames += found
    return frames
