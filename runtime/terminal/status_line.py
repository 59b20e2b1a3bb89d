"""Show on a terminal's stderr what a command is doing, until it shows more itself.

The module imports nothing slow: the line is there while everything else is being imported, which
takes long from a cold disk. All other output clears it first.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_CLEAR = "\r\x1b[K"
_is_shown = False


def show(text: str) -> None:
    """Show a line in place of the one before; show nothing where stderr is not a terminal.

    Args:
        text: our own text: control characters are not replaced.
    """
    global _is_shown
    if not can_show():
        return
    with suppress(OSError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        sys.stderr.write(f"{_CLEAR}{text[: columns - 4]}")  # leaves room for the ^C of a ctrl-C
        sys.stderr.flush()
        _is_shown = True


def clear() -> None:
    """Remove the line if there is one."""
    global _is_shown
    if not _is_shown:
        return
    _is_shown = False
    with suppress(OSError):
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


def can_show() -> bool:
    """Whether stderr is a terminal that can erase a line."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # stderr is missing or closed
        return False
