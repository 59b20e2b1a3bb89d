"""Messages in the Hugging Face / OpenAI shape -> checked turns and the pictures they show."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import PromptError
from .file_like import is_file_like, read_file_like

# Of one conversation. Real ones that fill a context of 32,768 tokens have some 150,000 characters.
MAX_TEXT_CHARS = 8_000_000
MAX_PARTS = 20_000  # messages and their parts

ROLES = ("system", "user", "assistant")
# Which keys of a part may hold the picture, as the two APIs spell it.
_SOURCE_KEYS = {
    "image": ("image", "url", "path", "base64"),
    "image_url": ("image_url",),
    "video": ("video",),
}


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of a message's text."""

    text: str


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A picture or a clip in a message.

    Attributes:
        sources: one for an image, the frames in order for a video; each a path, bytes, a Pillow
            image or an array uint8[H, W, 3]; what was a file is bytes.
        min_pixels, max_pixels: of this one, over the request's.
    """

    kind: Literal["image", "video"]
    sources: tuple[Any, ...]
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `is_plain` remembers that its content was a string, which templates look at."""

    role: str
    parts: tuple[TextPart | MediaPart, ...]
    is_plain: bool


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Check messages and give them one shape.

    Args:
        messages: `{"role": "user", "content": "..." or [part, ...]}`; a part is
            `{"type": "text", "text": ...}`, `{"type": "image", "image": source}`,
            `{"type": "image_url", "image_url": {"url": path or data URL}}` or
            `{"type": "video", "video": [frame, ...]}`, pictures also with `min_pixels` and
            `max_pixels`.

    Raises:
        PromptError: names the message and the part that is wrong.
        ImageError: a picture that is an open file can't be read.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(f"messages are a {type(messages).__name__}, needed a list of messages")
    if not messages:
        raise PromptError("there are no messages: an answer needs at least one")
    num_parts = len(messages) + sum(map(_count_parts, messages))
    if num_parts > MAX_PARTS:
        raise PromptError(
            f"there are {num_parts} messages and parts of messages, at most {MAX_PARTS} are taken: "
            "leave old ones out"
        )
    checked = [_read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    parts = (part for message in checked for part in message.parts)
    num_chars = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    if num_chars > MAX_TEXT_CHARS:
        raise PromptError(
            f"the messages have {num_chars} characters of text, at most {MAX_TEXT_CHARS} are "
            "taken: shorten them"
        )
    return checked


def list_media(messages: Sequence[Message]) -> list[MediaPart]:
    """Every picture and clip, in the order of the prompt."""
    return [part for m in messages for part in m.parts if isinstance(part, MediaPart)]


def _count_parts(message: Any) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    return len(content) if isinstance(content, Sequence) and not isinstance(content, str) else 0


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is a {type(message).__name__}, needed a mapping")
    _check_keys(message, {"role", "content"}, where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise PromptError(f"{where} has the role {role!r}, needed one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return Message(role, (TextPart(_read_text(content, where)),), is_plain=True)
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise PromptError(
            f"{where} has content of type {type(content).__name__}, needed a string or a list"
        )
    parts = [_read_part(part, f"{where} part {i}") for i, part in enumerate(content)]
    return Message(role, tuple(parts), is_plain=False)


def _read_part(part: Any, where: str) -> TextPart | MediaPart:
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is a {type(part).__name__}, needed a mapping with a type")
    kind = part.get("type")
    if kind == "text":
        _check_keys(part, {"type", "text"}, where)
        return TextPart(_read_text(part.get("text"), where))
    if not isinstance(kind, str) or kind not in _SOURCE_KEYS:
        needed = ", ".join(("text", *_SOURCE_KEYS))
        raise PromptError(f"{where} has the type {kind!r}, needed one of {needed}")
    keys = _SOURCE_KEYS[kind]
    _check_keys(part, {"type", "min_pixels", "max_pixels", *keys}, where)
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise PromptError(f"{where} must have exactly one of {', '.join(keys)}, got {len(given)}")
    value = part[given[0]]
    limits = (_read_pixels(part, "min_pixels", where), _read_pixels(part, "max_pixels", where))
    if kind == "video":
        return MediaPart("video", _read_frames(value, where), *limits)
    if kind == "image_url" and isinstance(value, Mapping):
        _check_keys(value, {"url", "detail"}, where)
        value = value.get("url")
    if given[0] == "base64":
        return MediaPart("image", (_decode_base64(value, where),), *limits)
    return MediaPart("image", (_read_source(value, where),), *limits)


def _read_frames(value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, (str, Path, bytes)):
        raise PromptError(f"{where}: a video is a list of frames; reading video files comes later")
    if not isinstance(value, Sequence) or not value:
        raise PromptError(f"{where}: a video is a list of at least one frame, got {value!r:.80}")
    return tuple(_read_source(frame, f"{where} frame {i}") for i, frame in enumerate(value))


def _read_source(value: Any, where: str) -> Any:
    """Leave a picture for `images.read_image`, but open data URLs and refuse web addresses."""
    if value is None:
        raise PromptError(f"{where} has no picture")
    if is_file_like(value):  # once: a clip's frames are opened again and again
        return read_file_like(value, where)
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        head, comma, data = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise PromptError(
                f"{where}: a data URL reads data:image/...;base64,..., got {head:.60}"
            )
        return _decode_base64(data, where)
    if value.startswith(("http://", "https://")):
        raise PromptError(f"{where}: {value:.80} is on the network; download it and give its path")
    return value.removeprefix("file://")


def _decode_base64(data: Any, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise PromptError(f"{where} holds no base64 data: {error}") from error


def _read_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{where} has text of type {type(value).__name__}, needed a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, as os.fsdecode makes them
        raise PromptError(f"{where} is no valid Unicode: {error}") from error
    return value


def _read_pixels(part: Mapping[str, Any], key: str, where: str) -> int | None:
    value = part.get(key)
    if value is not None and (type(value) is not int or value <= 0):
        raise PromptError(f"{where} has {key} {value!r}, needed a positive integer")
    return value


def _check_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(map(str, set(given) - known)):
        raise PromptError(f"{where} has unknown keys: {', '.join(unknown)}")
