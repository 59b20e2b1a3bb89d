"""Check that all pictures of the examples open, and hash the whole set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...runtime.errors import ImageError
from ...runtime.files.regular_file import check_regular, open_regular
from ...runtime.inputs.bicubic import get_size
from ...runtime.inputs.images import open_image
from ...runtime.inputs.patches import MAX_FRAMES
from ...runtime.inputs.picture_files import list_pictures
from ...runtime.inputs.resize import MAX_ASPECT
from ...runtime.threads import count_cpus
from ..files.source_stamp import SourceStamp, stamp_files
from .examples import Example

CLIP_SUFFIXES = frozenset((".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm"))
MAX_FILE_BYTES = 1 << 30  # of one picture's file


class Seen(NamedTuple):
    """What is known of a picture that opened."""

    width: int
    height: int
    sha256: str


class Settled(NamedTuple):
    """Examples that can be used, and id -> why not of the others."""

    examples: tuple[Example, ...]
    skipped: dict[str, str]
    sha256: str
    stamp: SourceStamp  # of the pictures, from before they were hashed


def settle(examples: Sequence[Example], places: Sequence[str], *, skip_bad: bool) -> Settled:
    """Open every picture once, one at a time a processor, and hash everything in order.

    Args:
        examples: a picture is a path, the bytes of a file, or None: missing; a clip is a list of
            them, or a list of one folder of frames.
        places: where each example stands, for messages.
        skip_bad: leave out examples with a missing or broken picture instead of failing.

    Raises:
        ValueError: names the example and its bad picture.
    """
    expanded: list[Example | str] = [_expand_clips(example) for example in examples]
    sources = {s: None for e in expanded if isinstance(e, Example) for s in _list_sources(e)}
    stamp = stamp_files(Path(source) for source in sources if isinstance(source, str))
    with ThreadPoolExecutor(count_cpus()) as pool:
        seen = dict(zip(sources, pool.map(_see, sources), strict=True))
    kept, skipped, digest = [], {}, hashlib.sha256()
    for given, example, place in zip(examples, expanded, places, strict=True):
        fault = example if isinstance(example, str) else _find_fault(example, seen)
        if not fault and isinstance(example, Example):
            kept.append(example)
            digest.update(_write_text(example, seen))
        elif skip_bad:
            skipped[given.id] = str(fault)
        else:
            raise ValueError(f"{place}: {fault} (--skip-bad leaves such examples out)")
    return Settled(tuple(kept), skipped, digest.hexdigest(), stamp)


def list_parts(example: Example) -> Iterator[dict[str, Any]]:
    """Pictures and clips of an example, in the prompt's order."""
    for message in example.messages:
        if not isinstance(message["content"], str):
            yield from (part for part in message["content"] if part["type"] != "text")


def get_frames(part: Mapping[str, Any]) -> list[Any]:
    """The one picture of an image, the frames of a clip."""
    return [part["image"]] if part["type"] == "image" else list(part["video"])


def _expand_clips(example: Example) -> Example | str:
    """Frames in the place of a clip's folder; or what is wrong with it."""
    if not any(part["type"] == "video" for part in list_parts(example)):
        return example
    messages = []
    try:
        for message in example.messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [_expand_part(part) for part in content]
            messages.append(dict(message) | {"content": content})
    except ImageError as error:
        return str(error)
    return replace(example, messages=tuple(messages))


def _expand_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "video":
        return part
    first = part["video"][0]
    if len(part["video"]) > 1 or not isinstance(first, str):
        return part
    path = Path(first)
    if path.is_file() and path.suffix.lower() in CLIP_SUFFIXES:
        raise ImageError(
            f"{path} is a video file: cut it into pictures, a folder of them is a clip"
        )
    if not path.is_dir():
        return part
    frames = [str(frame) for frame in list_pictures(path)]
    if not frames:
        raise ImageError(f"{path} is a folder without pictures, needed the frames of a clip")
    return part | {"video": frames}


def _list_sources(example: Example) -> Iterator[Any]:
    for part in list_parts(example):
        yield from get_frames(part)


def _see(source: Any) -> Seen | str:
    """Decode a picture and forget it; its size and hash, or what is wrong with it."""
    try:
        if source is None:
            raise ImageError("there is no picture")
        digest = hashlib.sha256()
        if isinstance(source, bytes):
            digest.update(source)
        else:
            _hash_file(Path(source), digest)
        height, width = get_size(open_image(source))
    except ImageError as error:
        return str(error)
    if max(width, height) > MAX_ASPECT * min(width, height):
        name = source if isinstance(source, str) else "picture"
        return f"{name} is {width}x{height}, one side over {MAX_ASPECT} times the other"
    return Seen(width, height, digest.hexdigest())


def _hash_file(path: Path, digest: Any) -> None:
    try:
        if not path.exists():
            raise ImageError(f"{path} is missing")
        check_regular(path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path} has over {MAX_FILE_BYTES} bytes: this is no picture")
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"can't read {path}: {getattr(error, 'strerror', '') or error}") from error


def _find_fault(example: Example, seen: dict[Any, Seen | str]) -> str:
    """What is wrong with an example's pictures; "" if nothing."""
    for part in list_parts(example):
        frames = get_frames(part)
        if len(frames) > MAX_FRAMES:
            return f"a clip has {len(frames)} frames, at most {MAX_FRAMES} can be taken"
        found = [seen[frame] for frame in frames]
        sizes = []
        for picture in found:
            if isinstance(picture, str):
                return picture
            sizes.append(f"{picture.width}x{picture.height}")
        if len(set(sizes)) > 1:
            other = next(i for i, size in enumerate(sizes) if size != sizes[0])
            return (
                f"frame {other} of a clip is {sizes[other]}, frame 0 is {sizes[0]}: "
                "frames have one size"
            )
    return ""


def _write_text(example: Example, seen: dict[Any, Seen | str]) -> bytes:
    """Everything of an example that can change a result; pictures by their hashes."""

    def name(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        hashes = [getattr(seen[frame], "sha256", "") for frame in get_frames(part)]
        return part | {part["type"]: hashes}

    messages = [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [name(part) for part in message["content"]],
        }
        for message in example.messages
    ]
    fields = [
        example.id,
        messages,
        example.answers,
        example.task,
        example.metric,
        example.choices,
    ]
    return json.dumps(fields, sort_keys=True).encode() + b"\n"
