"""Makes text of unknown origin safe to show: control characters become visible escapes.

A file name, an id or a model's answer may hold any character. Sent to a terminal unchanged, control
characters move the cursor and change colours or the window's title, and bidirectional overrides
show another text than the one that is there.
"""

from __future__ import annotations

import re

# C0, DEL and C1; separators of lines; overrides and isolates of direction; halves of surrogates,
# which stand for undecodable bytes of a file name and which our streams can't encode
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str, *, keep: str = "") -> str:
    r"""Replace each control character with its escape as Python writes it: \x1b, \n, \u202e.

    Args:
        text: text of any origin.
        keep: control characters that stay, such as "\n" in an answer of several lines.
    """

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return character.encode("unicode_escape").decode("ascii")

    return _CONTROLS.sub(escape, text)


def escape_json(text: str) -> str:
    """Replace control characters in JSON text with JSON's own escapes; its values stay the same.

    Line breaks and tabs stay: in JSON text they only occur outside of strings.
    """
    return _CONTROLS.sub(
        lambda match: match[0] if match[0] in "\t\n\r" else f"\\u{ord(match[0]):04x}", text
    )
