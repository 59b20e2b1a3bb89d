"""Read a recipe from a TOML file or a preset, and write it as TOML.

    name = "orin"
    [vision]                      # the ViT and the merger
    format = "int8"               # static W8A8
    [decoder]
    format = "int4-weight"
    block_size = 128
    [lm_head]
    format = "int8-weight"
    [embedding]
    format = "lm_head"            # the table is the head's own matrix
    [[layers]]                    # exceptions, the last that fits counts
    pattern = "visual.merger.*"
    format = "int8-weight"
    reason = "decides every visual token"

Every table and key may be left out; an unknown one is an error.
"""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomllib

from ...runtime.files.plain_text import check_plain
from ...runtime.files.regular_file import read_regular_text
from ...runtime.files.strict import read_strict
from .preset_names import PACKAGE, find_recipe
from .recipe import Recipe

MAX_RECIPE_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # what TOML strings may not hold


def open_recipe(name: str | Path) -> Recipe:
    """A preset by its name, or a TOML file.

    Raises:
        ValueError: neither exists, or the file is no recipe (it says what is wrong with it).
    """
    path = find_recipe(name)
    if path is None:
        text = (files(PACKAGE) / "presets" / f"{name}.toml").read_text("utf-8")
        return parse_recipe(text, str(name))
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise ValueError(f"{path} has over {MAX_RECIPE_BYTES} bytes: this is no recipe")
    try:
        return parse_recipe(read_regular_text(path), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe's TOML, strictly.

    Raises:
        ValueError: names `where`, the key, what was got and what was needed.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise ValueError(f"{where} is not TOML: {error}") from error
    try:
        # Names and reasons go into manifests
        check_plain(raw, where, long_texts=(f"{where}.description",))
        return read_strict(raw, Recipe, where, ValueError)
    except ValueError as error:  # keys can hold a line's end
        raise ValueError(" ".join(str(error).split())) from error


def format_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that `parse_recipe` reads back; defaults are left out."""
    lines = [f"name = {_quote(recipe.name)}"]
    if recipe.description:
        lines.append(f"description = {_quote(recipe.description)}")
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value) and (rows := _list_changes(value)):
            lines += ["", f"[{field.name}]", *rows]
    for layer in recipe.layers:
        lines += ["", "[[layers]]", *_list_changes(layer)]
    return "\n".join(lines) + "\n"


def _list_changes(value: Any) -> list[str]:
    rows = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item != field.default:
            rows.append(f"{field.name} = {_quote(item) if isinstance(item, str) else item}")
    return rows


def _quote(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'
