"""Strings of a file that somebody else may have written, and whether they are plain text.

They end up in shell scripts, tables on a terminal, HTML and JUnit XML. Each of these quotes the
strings it gets. Control characters are refused already where a file is read, so that a place that
forgets to quote can't run, hide or reorder anything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 4096  # characters; the longest in our own files, a pattern of a recipe, has some dozens

# Controls (C0, C1, DEL), halves of a surrogate pair (no encoding can write them), and the
# separators of lines and paragraphs, which some programs break lines at.
_REFUSED = ("Cc", "Cs", "Zl", "Zp")
# They reorder the text around them: "safe\u202etxt.sh" is shown as another name.
_BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
_MARKS = "\u200e\u200f\u061c"


def find_control(text: str, allowed: str = "") -> str | None:
    r"""The first character that plain text may not have: a control, a bidirectional override, ...

    Args:
        text: the text to look at.
        allowed: controls that it may have, such as "\\n\\t".
    """
    if text.isascii() and text.isprintable():  # nearly all texts
        return None
    for character in text:
        if character in allowed:
            continue
        if unicodedata.category(character) in _REFUSED or character in _MARKS:
            return character
        if unicodedata.bidirectional(character) in _BIDI:
            return character
    return None


def check_plain(
    value: Any,
    where: str,
    error: type[ValueError] = ValueError,
    *,
    long_texts: tuple[str, ...] = (),
) -> None:
    """Check that every string of parsed JSON or TOML, keys included, is plain and not too long.

    Args:
        value: the parsed value.
        where: how error messages call it: "manifest.json".
        error: the class of the errors.
        long_texts: places, as "manifest.json.quantization.recipe_toml", whose strings may be of
            any length and have lines and tabs; a list's place stands for its items.

    Raises:
        ValueError: of the class `error`: a string isn't plain or is too long; names its place.
    """
    open_places: list[tuple[Any, str]] = [(value, where)]
    while open_places:  # not by recursion: JSON may be nested deeper than Python's stack
        item, place = open_places.pop()
        if isinstance(item, str):
            is_long = place in long_texts or place.rpartition("[")[0] in long_texts
            _check_string(item, place, error, is_long=is_long)
        elif isinstance(item, Mapping):
            for key in item:
                _check_string(key, f"a key of {place}", error, is_long=False)
            open_places += [(each, f"{place}.{key}") for key, each in item.items()]
        elif isinstance(item, list):
            open_places += [(each, f"{place}[{i}]") for i, each in enumerate(item)]


def _check_string(text: str, place: str, error: type[ValueError], *, is_long: bool) -> None:
    if not is_long and len(text) > MAX_TEXT:
        raise error(f"{place:.200} has {len(text)} characters, at most {MAX_TEXT} are allowed")
    found = find_control(text, "\n\t" if is_long else "")
    if found is not None:
        raise error(
            f"{place:.200} holds the character U+{ord(found):04X}, needed plain text without "
            f"control characters: {text[:60]!a}"
        )
