"""Read SWEEP.toml: models, recipes and shards of the data.

    sources = ["reader-fp32"]          # float bundles; checkpoints are exported first
    recipes = ["orin", "cpu", "mine.toml"]
    bundles = ["older-int8"]           # ready ones, judged beside those that are made
    [data]
    source = "held-out/data.jsonl"     # as `vlmedge check --data` takes it
    num_shards = 4
    [calibration]
    source = "calibration/data.jsonl"  # as `vlmedge quantize --data` takes it
    [check]
    levels = ["embeddings", "logits", "texts", "tasks"]
    gate = "gate.toml"

Paths are relative to the file. An unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tomllib

from ...runtime.files.regular_file import read_regular
from ...runtime.files.strict import read_strict
from ..check.plan import CheckPlan, Level, check_gate
from ..gate.gate import Gate, read_gate
from ..recipe.preset_names import list_presets
from ..recipe.recipe import Recipe
from ..recipe.toml import open_recipe

MAX_SWEEP_BYTES = 1 << 20
MAX_SHARDS = 4096
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")  # in a file's name


@dataclass(frozen=True, slots=True)
class DataSection:
    """Which examples; see `data.open_data`.

    Attributes:
        num_shards: parts that are checked side by side; more than examples are not made.
    """

    source: str
    num_shards: int = 1
    limit: int | None = None
    seed: int = 0
    task: str | None = None
    skip_bad: bool = False
    media_root: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_shards <= MAX_SHARDS:
            raise ValueError(f"num_shards is {self.num_shards}, needed 1 to {MAX_SHARDS}")


@dataclass(frozen=True, slots=True)
class CalibrationSection:
    """Which examples recipes are calibrated with."""

    source: str
    limit: int | None = None
    seed: int = 0
    task: str | None = None
    skip_bad: bool = False
    media_root: str | None = None


_Section = TypeVar("_Section", DataSection, CalibrationSection)


@dataclass(frozen=True, slots=True)
class CheckSection:
    """What is measured.

    Attributes:
        levels: of check_plan.LEVELS.
        num_speed_runs: measurements of each time.
        against: a float bundle that all are compared with; None: each with its own source.
        gate: a file of limits; None: nothing is judged.
    """

    levels: tuple[Level, ...] = ("embeddings", "logits", "texts", "tasks")
    max_new_tokens: int = 32
    num_speed_runs: int = 5
    against: str | None = None
    gate: str | None = None

    def __post_init__(self) -> None:
        CheckPlan(self.levels, self.max_new_tokens, self.num_speed_runs)  # checks them


@dataclass(frozen=True, slots=True)
class _File:
    """The file as it is written."""

    data: DataSection
    sources: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    calibration: CalibrationSection | None = None
    check: CheckSection = CheckSection()


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep with everything it names found; paths are absolute.

    Attributes:
        sources: name -> float bundle, or checkpoint (a folder or hub id).
        recipes: name -> recipe.
        bundles: name -> ready bundle.
    """

    sources: dict[str, str]
    recipes: dict[str, Recipe]
    bundles: dict[str, str]
    data: DataSection
    calibration: CalibrationSection | None
    check: CheckSection
    gate: Gate | None


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file, its recipes and its gate.

    Raises:
        ValueError: no such file, no TOML, a key that is none, or a recipe, gate or bundle that is
            missing; says where.
    """
    path = Path(path)
    try:
        raw = read_regular(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_SWEEP_BYTES:
        raise ValueError(f"{path} has over {MAX_SWEEP_BYTES} bytes: this is no sweep")
    try:
        tables = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is not TOML: {error}") from error
    file = read_strict(tables, _File, str(path))
    try:
        return _resolve(file, path.absolute().parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def name_path(path: str) -> str:
    """The last part of a path or hub id, in letters that any file system takes."""
    return _UNSAFE.sub("-", path.rstrip("/").rpartition("/")[2]).strip(".-") or "unnamed"


def _resolve(file: _File, folder: Path) -> Sweep:
    if not file.sources and not file.bundles:
        raise ValueError("there are no sources and no bundles: nothing to sweep")
    if bool(file.sources) != bool(file.recipes):
        raise ValueError("sources and recipes go together: each source is quantized by each recipe")
    sources = _name_all("sources", [_find(source, folder) for source in file.sources])
    bundles = _name_all("bundles", [_find(bundle, folder) for bundle in file.bundles])
    for bundle in bundles.values():
        if not Path(bundle).is_dir():
            raise ValueError(f"bundles: there is no folder {bundle}")
    check = file.check
    if bundles and check.against is None and len(sources) != 1:
        raise ValueError("check.against is needed: what bundles are compared with")
    gate = read_gate(folder / check.gate) if check.gate is not None else None
    if gate is not None:
        check_gate(gate, check.levels)
    recipes = {}
    for name in file.recipes:
        is_preset = name in list_presets()
        recipe = open_recipe(name if is_preset else folder / name)
        key = name_path(name if is_preset else Path(name).stem)
        if key in recipes:
            raise ValueError(f"recipes: two are called {key}: rename a file")
        recipes[key] = recipe
    if file.calibration is None:
        for key, recipe in recipes.items():
            if recipe.needs_data:
                raise ValueError(
                    f"recipe {key} needs real pictures: add [calibration] with their source"
                )
    against = None if check.against is None else _find(check.against, folder)
    return Sweep(
        sources=sources,
        recipes=recipes,
        bundles=bundles,
        data=_find_data(file.data, folder),
        calibration=file.calibration and _find_data(file.calibration, folder),
        check=dataclasses.replace(check, against=against),
        gate=gate,
    )


def _name_all(what: str, paths: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for path in paths:
        name = name_path(path)
        if name in named:
            raise ValueError(f"{what}: two are called {name}: rename one")
        named[name] = path
    return named


def _find(path: str, folder: Path) -> str:
    """A path made absolute; what is not there stays as it is: a hub id."""
    found = folder / path
    return str(found) if found.exists() else path


def _find_data(section: _Section, folder: Path) -> _Section:
    """PATH or LAYOUT:PATH, and the media root, made absolute where they are there."""
    layout, colon, path = section.source.rpartition(":")
    source = f"{layout}{colon}{_find(path, folder)}" if path else section.source
    root = _find(section.media_root, folder) if section.media_root else None
    return dataclasses.replace(section, source=source, media_root=root)
