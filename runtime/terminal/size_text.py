"""Parse a size such as 1920x1080 into width and height."""

from __future__ import annotations

import re

_SIZE = re.compile(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})")


def parse_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, as in 1920x1080.

    Raises:
        ValueError: the text has another form, or a side is 0.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"size is {text!r}, needed WIDTHxHEIGHT in pixels, such as 1092x924")
    return int(match[1]), int(match[2])
