"""Texts of messages, made short enough to be read: what a file holds can be a name of megabytes."""

from __future__ import annotations

import re

MAX_WORD_CHARS = 200  # a path, an id, a number
MAX_MESSAGE_CHARS = 2000
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_CHARS + 1},}}")


def shorten(text: str, max_chars: int = MAX_WORD_CHARS) -> str:
    """The text with its middle left out where it is longer: "abc…xyz", `max_chars` long."""
    if len(text) <= max_chars:
        return text
    tail = (max_chars - 1) // 2
    return f"{text[: max_chars - 1 - tail]}…{text[len(text) - tail :]}"


def shorten_message(text: str) -> str:
    """A message whose long words, and then itself where it is still long, lack their middle."""
    return shorten(_LONG_WORD.sub(lambda word: shorten(word[0]), text), MAX_MESSAGE_CHARS)
