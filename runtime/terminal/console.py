"""Print for a person: tables and lines on stdout, notices and progress on stderr.

All output goes through here: lines are broken for a terminal where a person would break them,
control characters of names and answers become visible, and the status line of a command at work is
removed first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
)
from rich.text import Text

from . import status_line
from .line_breaks import break_lines, elide_middle
from .printable import escape_controls, escape_json
from .tables import Column, lay_out

# Of a terminal that doesn't tell its width, as some that programs make
DEFAULT_WIDTH = 80
MAX_BAR_CELLS = 40
# Beside the description: amounts, speed and time, and the blanks between them
_OTHER_CELLS = {False: 24, True: 44}
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def make_progress(*, of_bytes: bool) -> Progress:
    """A progress bar on stderr that leaves nothing behind, silent where stderr is no terminal."""
    status_line.clear()
    console = Console(stderr=True)
    bar_cells = max(4, min(MAX_BAR_CELLS, console.width // (10 if of_bytes else 4)))
    return Progress(
        _Description(console, bar_cells + _OTHER_CELLS[of_bytes]),
        BarColumn(bar_width=bar_cells),
        _Amount(of_bytes=of_bytes),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # results are no part of what is drawn on stderr
        disable=not sys.stderr.isatty(),
    )


class _Description(ProgressColumn):
    """Describes the work; a long name is cut in the middle, so that the rest keeps its room."""

    def __init__(self, console: Console, other_cells: int) -> None:
        super().__init__()
        self._console, self._other_cells = console, other_cells

    def render(self, task: Task) -> Text:
        # The terminal may have been made narrower
        room = max(8, self._console.width - self._other_cells)
        return Text(elide_middle(escape_controls(task.description), room))


class _Amount(ProgressColumn):
    """3/12, or 1.5/12.0 MiB and bytes a second; nothing while the total is not known."""

    max_refresh = 0.5  # seconds; nobody can read a speed that changes all the time

    def __init__(self, *, of_bytes: bool) -> None:
        super().__init__()
        self._of_bytes = of_bytes

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        if not self._of_bytes:
            return Text(f"{task.completed:.0f}/{task.total:.0f}")
        total, _, unit = format_bytes(int(task.total)).partition(" ")
        done = task.completed / _UNITS[unit]
        amount = f"{done:.{len(total.partition('.')[2])}f}/{total} {unit}"
        speed = task.finished_speed or task.speed
        return Text(f"{amount}, {format_bytes(int(speed))}/s" if speed else amount)


def print_table(
    title: str, columns: Sequence[str | Column], rows: Iterable[Sequence[object]]
) -> None:
    """Print a table on stdout; a column name with a leading '>' is a column of figures.

    The first column holds the name. Without any column name there is no header. On a terminal the
    table keeps to its width, in a pipe every row is one line.
    """
    known = [
        column if isinstance(column, Column) else Column(column.lstrip(">"), column[:1] == ">")
        for column in columns
    ]
    cells = [[escape_controls(str(cell)) for cell in row] for row in rows]
    width = _find_width(sys.stdout)
    lines = lay_out(known, cells, width, rule="─" if _can_show("─", sys.stdout) else "-")
    status_line.clear()
    console = Console(width=width or 1 << 15, markup=False, highlight=False, emoji=False)
    for text in break_lines(escape_controls(title), width or sys.maxsize) if title else ():
        console.print(Text(text, "bold"), soft_wrap=True)
    for line in lines:
        console.print(Text(line.text, "bold" if line.is_head else ""), soft_wrap=True)


def print_line(text: str = "") -> None:
    """Print a sentence of the result on stdout."""
    _print(escape_controls(text), sys.stdout)


def print_notice(text: str) -> None:
    """Print one line that is not a result, on stderr."""
    _print(escape_controls(" ".join(text.split())), sys.stderr)


def print_piece(text: str) -> None:
    """Print a part of an answer on stdout, at once; a pipe gets the characters unchanged."""
    if sys.stdout.isatty():
        text = escape_controls(text, keep="\n\t")
    status_line.clear()
    print(text, end="", flush=True)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout, indented; a number that JSON lacks is an error."""
    print_json_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def print_json_text(text: str) -> None:
    """Print JSON that is already text, on stdout."""
    status_line.clear()
    print(escape_json(text.rstrip("\n")))


def format_bytes(count: int) -> str:
    """A number of bytes for a person: 12.3 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _print(text: str, stream: TextIO) -> None:
    status_line.clear()
    width = _find_width(stream)
    indent = text[: len(text) - len(text.lstrip(" "))]
    lines = [text] if width is None else break_lines(text, width)
    if len(lines) > 1 and width is not None and indent:  # later lines are indented as well
        lines = break_lines(text.lstrip(" "), width - len(indent))
        lines = [indent + line for line in lines]
    for line in lines:
        print(line, file=stream)


def _find_width(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream goes to; None: it goes to no terminal."""
    if not stream.isatty():
        return None
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return DEFAULT_WIDTH
    return columns or DEFAULT_WIDTH


def _can_show(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
