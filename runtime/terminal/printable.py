"""Makes text of unknown origin safe to show: control characters become visible escapes.

A file name, an id or a model's answer may hold anything. Sent to a terminal as they are, control
characters move the cursor, change colours or the window's title, and bidirectional overrides show
another text than the one that is there.
"""

from __future__ import annotations

import re

# C0, DEL and C1; separators of lines; overrides and isolates of direction; halves of surrogates,
# which stand for undecodable bytes of a file name and which no stream of ours could encode
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str, *, keep: str = "") -> str:
    r"""Replace each control character by its escape as Python writes it: \x1b, \n, \u202e.

    Args:
        text: anything.
        keep: control characters that stay, as "\n" in an answer of several lines.
    """

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return character.encode("unicode_escape").decode("ascii")

    return _CONTROLS.sub(escape, text)


def escape_json(text: str) -> str:
    """The same for JSON text: JSON's own escapes, so that a reader gets the same values.

    Line breaks and tabs outside of strings stay; within strings there are none.
    """
    return _CONTROLS.sub(
        lambda match: match[0] if match[0] in "\t\n\r" else f"\\u{ord(match[0]):04x}", text
    )
