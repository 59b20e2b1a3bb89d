"""Read the bytes of a picture from open files, buffers and HTTP responses."""

from __future__ import annotations

import io
from typing import Any

from ..errors import ImageError

READ_BYTES = 1 << 20  # asked for at a time; a stream may hand out fewer
MAX_STREAM_BYTES = 1 << 28  # largest picture file from such a source or from stdin


def is_file_like(source: object) -> bool:
    """Whether a source is read by calling it: an open file, BytesIO, a response of urllib.

    Pillow pictures and arrays are not: they have no `read`.
    """
    return callable(getattr(source, "read", None))


def read_file_like(source: Any, name: str) -> bytes:
    """Read from the current position to the end; the file stays open, its position at the end.

    Args:
        source: has `read(size) -> bytes`.
        name: how error messages call it.

    Raises:
        ImageError: it is closed, opened as text, already at its end, too long, or can't be read.
    """
    blocks = []
    num_bytes = 0
    try:
        while block := source.read(READ_BYTES):
            if not isinstance(block, (bytes, bytearray, memoryview)):
                raise ImageError(_explain_type(block, name))
            num_bytes += memoryview(block).nbytes
            if num_bytes > MAX_STREAM_BYTES:
                raise ImageError(
                    f"{name} holds more than {MAX_STREAM_BYTES} bytes, the most that is read from "
                    f"a {type(source).__name__}: save it to a file and give its path"
                )
            blocks.append(bytes(block))
    except ImageError:
        raise
    except io.UnsupportedOperation as error:
        raise ImageError(f"{name} can't be read: open the file with mode 'rb'") from error
    except (OSError, ValueError, TypeError) as error:  # ValueError: a closed file
        raise ImageError(
            f"{name} can't be read from its {type(source).__name__}: {error}"
        ) from error
    if not blocks:
        raise ImageError(
            f"{name} is a file at its end, with nothing left to read: seek(0) before using it again"
        )
    return b"".join(blocks)


def _explain_type(block: object, name: str) -> str:
    if isinstance(block, str):
        return f"{name} is a file opened as text: open it with mode 'rb'"
    close = getattr(block, "close", None)
    if hasattr(block, "__await__"):
        if callable(close):
            close()  # a coroutine that nobody awaits would warn
        return f"{name} is read asynchronously: await its read() and give the bytes"
    return f"{name}: read() returned a {type(block).__name__}, needed bytes"
