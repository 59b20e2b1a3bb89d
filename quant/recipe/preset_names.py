"""The recipes that come with the package, by name; nothing is read or imported for it."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from ...runtime.files.regular_file import check_regular

PACKAGE = "vlmedge.quant.recipe"


def list_presets() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files(PACKAGE) / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name[-5:] == ".toml")


def find_recipe(name: str | Path) -> Path | None:
    """The file of a recipe; None: it is a preset.

    Raises:
        ValueError: neither exists, or the path is no regular file.
    """
    presets = list_presets()
    if str(name) in presets:
        return None
    path = Path(name)
    try:
        check_regular(path)
    except FileNotFoundError as error:
        close = difflib.get_close_matches(str(name), presets, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"{name} is no recipe: {hint}needed a TOML file or one of {', '.join(presets)}"
        ) from error
    except (OSError, ValueError) as error:  # another kind of file, or no name that a file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{name!s:.80} is no recipe: {reason}") from error
    return path
