"""Read a JSON file of a checkpoint strictly, as an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....runtime.files.regular_file import check_regular, read_regular
from ....runtime.files.strict import parse_object

MAX_JSON_BYTES = 64 << 20  # a vocabulary with its merges is about 11 MB


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of sane size.

    Raises:
        ValueError: no such file, not JSON, not an object, or one that other programs may read
            otherwise: a key that is there twice, a number that is not finite.
        OSError: it can't be read, or is no regular file.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: is {path.parent} a Hugging Face checkpoint?")
    check_regular(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, over {MAX_JSON_BYTES}")
    return parse_object(read_regular(path), str(path))
