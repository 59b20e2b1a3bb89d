"""This checkout and a pack -> an environment in which Python imports vlmedge and TensorRT-RTX.

Nothing is installed: folders go onto PYTHONPATH. vlmedge's three top-level folders are linked into
one of that name; packages of the pack are taken where this Python has none or too old a one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tomllib

from .config import ROOT
from .pack import RTX_FOLDER, WHEELS_FOLDER, Pack, unpack

SITE_FOLDER, PACK_FOLDER = "site", "pack"
LAYERS = ("runtime", "export", "quant")
SCRIPTS = ROOT / "scripts"

FindVersion = Callable[[str], str | None]


def make_environment(work: Path, pack_folder: Path, tell: Callable[[str], None]) -> dict[str, str]:
    """Unpack and link what is needed; the environment of the steps' processes.

    Args:
        work: folder for what is made.
        pack_folder: the pack; one that isn't there, or not whole, is told and done without.
        tell: gets what the user should know.
    """
    paths = [SCRIPTS, link_layers(work / SITE_FOLDER)]
    try:
        pack = unpack(pack_folder, work / PACK_FOLDER)
    except ValueError as error:
        tell(f"no pack is used: {error}")
    else:
        paths += list_pack_paths(work / PACK_FOLDER, pack, tell)
    inherited = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*map(str, paths), *([inherited] if inherited else [])])
    return dict(os.environ) | {"PYTHONPATH": joined, "PYTHONUNBUFFERED": "1"}


def link_layers(site: Path) -> Path:
    """A folder with vlmedge/runtime, export and quant in it; a namespace package."""
    package = site / "vlmedge"
    package.mkdir(parents=True, exist_ok=True)
    for layer in LAYERS:
        link = package / layer
        if not link.is_symlink() or link.resolve() != ROOT / layer:
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / layer, target_is_directory=True)
    return site


def list_pack_paths(unpacked: Path, pack: Pack, tell: Callable[[str], None]) -> list[Path]:
    """The folders of an unpacked pack that this Python needs, TensorRT-RTX first."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if pack.python != python:
        tell(f"the pack is for Python {pack.python}, this is {python}: nothing of it is used")
        return []
    names = choose_wheels(pack.packages, read_minima(), find_version)
    if names:
        tell(f"from the pack: {', '.join(names)}")
    return [unpacked / RTX_FOLDER, *(unpacked / WHEELS_FOLDER / name for name in names)]


def choose_wheels(
    packed: Mapping[str, str], minima: Mapping[str, str], find: FindVersion
) -> list[str]:
    """Packages to take from the pack: those that are missing, or older than vlmedge needs."""
    chosen = []
    for name in packed:
        if name.startswith("tensorrt_rtx"):
            continue
        installed = find(name)
        least = minima.get(normalize(name), "0")
        if installed is None or read_numbers(installed) < read_numbers(least):
            chosen.append(name)
    return chosen


def read_minima(path: Path = ROOT / "pyproject.toml") -> dict[str, str]:
    """The oldest versions that pyproject.toml names, of all extras together."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    minima: dict[str, str] = {}
    for line in lines:
        if found := re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", line):
            name, least = normalize(found[1]), found[2]
            minima[name] = max(minima.get(name, "0"), least, key=read_numbers)
    return minima


def find_version(name: str) -> str | None:
    """Of an installed package; None: it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def normalize(name: str) -> str:
    """A package's name as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_numbers(text: str) -> tuple[int, ...]:
    """What versions are compared by: "2.11.0+cu130" -> (2, 11, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)
