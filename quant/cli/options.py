"""Options of the commands that read data, and what they tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime.terminal.console import print_notice

if TYPE_CHECKING:
    from ..data.examples import DataSet

MediaRoot = Annotated[
    Path | None,
    typer.Option(
        "--media-root",
        metavar="FOLDER",
        help="What paths of pictures in a .jsonl or .json file are relative to.",
        show_default="the file's own folder",
    ),
]


def tell_data(data: DataSet, begin: str = "") -> None:
    """Say what of the data is not used: keys that are not read, examples that are left out.

    Args:
        data: as it was read.
        begin: of each line: "vlmedge check: ".
    """
    for notice in data.notices:
        print_notice(f"{begin}{notice}")
    for example, reason in data.skipped.items():
        print_notice(f"{begin}skipped {example}: {reason}")
