"""Check options in our own code; a wrong one ends the command with exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def wrong_options_exit_with_2() -> Iterator[None]:
    """Turn a ValueError of the block into a usage error; the block must import nothing heavy.

    This is for the first lines of a command, so that a wrong option is reported before packages are
    loaded, which may not even be installed.

    Raises:
        typer.BadParameter: with the error's own text.
    """
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(" ".join(str(error).split())) from error


def check_word(name: str, value: str, words: tuple[str, ...] | list[str]) -> None:
    """Refuse a value that is not among the given words.

    Raises:
        ValueError: names the words, and the nearest one.
    """
    if value in words:
        return
    from difflib import get_close_matches

    close = get_close_matches(value, words, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"{name} is {value!r}, needed one of {', '.join(words)}{hint}")


def need_file(name: str, path: Path) -> None:
    """Refuse a file that does not exist.

    Raises:
        ValueError: names the option and the file.
    """
    if not path.is_file():
        reason = "it is a folder" if path.is_dir() else "No such file"
        raise ValueError(f"{name} is {path}, which cannot be read: {reason}")
