"""Check messages in the Hugging Face or OpenAI shape, and list the pictures they show."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from ..errors import PromptError
from .file_like import is_file_like, read_file_like

# In one conversation. Those that fill a context of 32,768 tokens have some 150,000 characters.
MAX_TEXT_CHARS = 8_000_000
MAX_PARTS = 20_000  # messages and their parts
MAX_RESIZED_SIDE = 100_000  # px; the size after rounding is bounded by 16384 visual tokens
_URL_SAFE = str.maketrans("-_", "+/")

ROLES = ("system", "user", "assistant")
_OTHER_NAMES = {"developer": "system"}  # OpenAI's newer name
# Which keys of a part may hold the picture, as the two APIs spell it.
_SOURCE_KEYS = {
    "image": ("image", "url", "path", "base64"),
    "image_url": ("image_url",),
    "input_image": ("image_url",),
    "video": ("video",),
}
_TEXT_TYPES = ("text", "input_text", "output_text")
# Keys that messages for other tools carry beside the picture and that change no answer of this
# model: frames of a list are taken as they are, and their positions don't depend on the clock
_WITHOUT_EFFECT = frozenset(
    (
        *("fps", "raw_fps", "sample_fps", "nframes", "min_frames", "max_frames", "total_pixels"),
        *("video_start", "video_end", "detail"),
    )
)
_REFUSED_KEYS = {
    "tool_calls": "calls of tools",
    "function_call": "calls of tools",
    "audio": "sound",
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
            image or an array uint8[H, W, 3]; an open file was read into bytes.
        min_pixels, max_pixels: limits of this part; they go before the request's.
        resized: (height, width) that its pictures are resized to first; see `asked_size`.
        ignored: keys that have no effect on this model, for a notice.
    """

    kind: Literal["image", "video"]
    sources: tuple[Any, ...]
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized: tuple[int, int] | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `is_plain` says that its content was a string, which templates can tell."""

    role: str
    parts: tuple[TextPart | MediaPart, ...]
    is_plain: bool
    ignored: tuple[str, ...] = ()  # keys that have no effect on this model


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Check messages and give them one shape.

    Args:
        messages: `{"role": "user", "content": "..." or [part, ...]}`; a part is
            `{"type": "text", "text": ...}`, `{"type": "image", "image": source}`,
            `{"type": "image_url", "image_url": {"url": path or data URL}}` or
            `{"type": "video", "video": [frame, ...]}`, pictures also with `min_pixels`,
            `max_pixels`, `resized_height` and `resized_width`. OpenAI's newer spelling
            (`developer`, `input_text`, `input_image`) is read, and so are the keys that it and
            qwen-vl-utils put beside the picture; `list_ignored` names those without effect.

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


def list_ignored(messages: Sequence[Message]) -> list[str]:
    """A notice for each place that has keys without effect."""
    return [
        f"{where}: ignored, without effect on this model: {', '.join(ignored)}"
        for i, message in enumerate(messages)
        for where, ignored in (
            (f"messages[{i}]", message.ignored),
            *(
                (f"messages[{i}] part {j}", part.ignored)
                for j, part in enumerate(message.parts)
                if isinstance(part, MediaPart)
            ),
        )
        if ignored
    ]


def _count_parts(message: Any) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    return len(content) if isinstance(content, Sequence) and not isinstance(content, str) else 0


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is a {type(message).__name__}, needed a mapping")
    for key, what in _REFUSED_KEYS.items():
        if message.get(key):
            raise PromptError(f"{where} has {key}: {what} are not supported")
    ignored = ("name",) if message.get("name") else ()
    known = {"role", "content", "name", "refusal", *_REFUSED_KEYS}
    _check_keys({k: v for k, v in message.items() if v is not None}, known, where)
    role, content = message.get("role"), message.get("content")
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise PromptError(f"{where} has the role {role!r}, needed one of {', '.join(ROLES)}")
    if content is None and role == "assistant":  # as OpenAI sends an empty answer
        content = message.get("refusal") or ""
    if isinstance(content, str):
        return Message(
            role, (TextPart(_read_text(content, where)),), is_plain=True, ignored=ignored
        )
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise PromptError(
            f"{where} has content of type {type(content).__name__}, needed a string or a list"
        )
    parts = [_read_part(part, f"{where} part {i}") for i, part in enumerate(content)]
    return Message(role, tuple(parts), is_plain=False, ignored=ignored)


def _read_part(part: Any, where: str) -> TextPart | MediaPart:
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is a {type(part).__name__}, needed a mapping with a type")
    kind = part.get("type")
    if kind in _TEXT_TYPES:
        _check_keys(part, {"type", "text"}, where)
        return TextPart(_read_text(part.get("text"), where))
    if not isinstance(kind, str) or kind not in _SOURCE_KEYS:
        needed = ", ".join(("text", *_SOURCE_KEYS))
        raise PromptError(f"{where} has the type {kind!r}, needed one of {needed}")
    keys = _SOURCE_KEYS[kind]
    sizes = {"min_pixels", "max_pixels", "resized_height", "resized_width"}
    _check_keys(part, {"type", *sizes, *_WITHOUT_EFFECT, *keys}, where)
    ignored = tuple(sorted(key for key in _WITHOUT_EFFECT if part.get(key) is not None))
    more = {"resized": _read_resized(part, where), "ignored": ignored}
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise PromptError(f"{where} must have exactly one of {', '.join(keys)}, got {len(given)}")
    value = part[given[0]]
    limits = (_read_pixels(part, "min_pixels", where), _read_pixels(part, "max_pixels", where))
    if kind == "video":
        return MediaPart("video", _read_frames(value, where), *limits, **more)
    if kind in ("image_url", "input_image") and isinstance(value, Mapping):
        _check_keys(value, {"url", "detail"}, where)
        value = value.get("url")
    if given[0] == "base64":
        return MediaPart("image", (_decode_base64(value, where),), *limits, **more)
    return MediaPart("image", (_read_source(value, where),), *limits, **more)


def _read_frames(value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, (str, Path, bytes)):
        raise PromptError(f"{where}: a video is a list of frames; video files can't be read yet")
    if not isinstance(value, Sequence) or not value:
        raise PromptError(f"{where}: a video is a list of at least one frame, got {value!r:.80}")
    return tuple(_read_source(frame, f"{where} frame {i}") for i, frame in enumerate(value))


def _read_source(value: Any, where: str) -> Any:
    """Leave a picture for `images.read_image`, but open data URLs and refuse web addresses."""
    if value is None:
        raise PromptError(f"{where} has no picture")
    if is_file_like(value):  # read once: a clip's frames are opened several times
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
    if value[:8].lower().startswith(("http://", "https://")):
        raise PromptError(f"{where}: {value:.80} is on the network; download it and give its path")
    if value.startswith("file://"):
        return _read_file_url(value, where)
    return value


def _read_file_url(url: str, where: str) -> str:
    """The path of file:///a%20b.png; without a third slash, the rest is read as a path."""
    host, slash, path = url.removeprefix("file://").partition("/")
    if host in ("", "localhost"):
        return unquote(f"{slash}{path}")
    if host in (".", "..") or not slash:  # not a valid URL, but often written
        return unquote(f"{host}{slash}{path}")
    raise PromptError(
        f"{where}: {url:.80} names the host {host:.40}: give file:/// and a path on this machine"
    )


def _decode_base64(data: Any, where: str) -> bytes:
    """Bytes of base64 as clients send it: in lines, with either alphabet, padded or not."""
    try:
        if isinstance(data, str):
            data = "".join(data.split()).translate(_URL_SAFE).rstrip("=")
            data += "=" * (-len(data) % 4)
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise PromptError(f"{where} holds no valid base64: {error}") from error


def _read_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{where} has text of type {type(value).__name__}, needed a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, as os.fsdecode makes them
        raise PromptError(f"{where} is not valid Unicode: {error}") from error
    return value


def _read_resized(part: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    height = _read_pixels(part, "resized_height", where)
    width = _read_pixels(part, "resized_width", where)
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise PromptError(f"{where} has one of resized_height and resized_width, needed both")
    if max(height, width) > MAX_RESIZED_SIDE:
        raise PromptError(
            f"{where} asks for a size of {width}x{height}, at most {MAX_RESIZED_SIDE} a side"
        )
    return height, width


def _read_pixels(part: Mapping[str, Any], key: str, where: str) -> int | None:
    value = part.get(key)
    if value is not None and (type(value) is not int or value <= 0):
        raise PromptError(f"{where} has {key} {value!r}, needed a positive integer")
    return value


def _check_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(map(str, set(given) - known)):
        raise PromptError(f"{where} has unknown keys: {', '.join(unknown)}")
