"""What a command shows a person: tables on stdout, progress with bytes and seconds on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

# A pipe has no width of its own: wide enough that no cell of ours is cut
PIPE_WIDTH = 160


class AmountColumn(ProgressColumn):
    """3/12, and nothing as long as it is not known of how many."""

    def render(self, task: Task) -> Text:
        """The text of one task."""
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")


def make_progress(*, of_bytes: bool) -> Progress:
    """A progress bar on stderr that leaves nothing behind, silent where stderr is no terminal."""
    amounts: tuple[ProgressColumn, ...] = (AmountColumn(),)
    if of_bytes:
        amounts = (DownloadColumn(), TransferSpeedColumn())
    return Progress(
        TextColumn("{task.description}", markup=False),  # names of layers and files are no markup
        BarColumn(),
        *amounts,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; columns named with a leading '>' are aligned right.

    Without any column name there is no header.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        if column.startswith(">"):
            table.add_column(column[1:], justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(width=width, markup=False, highlight=False)
    console.print(title, style="bold")  # not as the table's title, which is wrapped to its width
    console.print(table)


def print_json(value: Any) -> None:
    """One JSON value on stdout, indented; a number that JSON lacks is an error."""
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def print_notice(text: str) -> None:
    """One line beside the results: on stderr."""
    print(" ".join(text.split()), file=sys.stderr)


def format_bytes(count: int) -> str:
    """12.3 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
