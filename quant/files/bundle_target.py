"""Decide what a new bundle may replace: nothing, an empty folder, or a bundle of ours.

A bundle is replaced as a whole, so everything in the old one goes. It may go if vlmedge wrote it:
the files that its manifest lists, and the engines that `vlmedge build` made of them. Anything else
in there is somebody's, and so is a text of the bundle that was edited.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import MANIFEST_NAME
from ...runtime.bundle.manifest_file import MAX_MANIFEST_BYTES
from .locked_folder import LOCK_NAME, is_at_work
from .target_lock import find_parent

CREATOR = "vlmedge "  # what created_by of every manifest begins with
ENGINES_FOLDER = "engines"  # the engine builder's; another layer knows what is in it
MAX_NAMED = 5  # files of somebody that an error names
_TEXTS = (".jinja", ".json")  # what people edit in a bundle
_MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class OldBundle:
    """What any version of vlmedge says of a bundle's files.

    Attributes:
        sha256: of each file that the manifest lists, by its name; None: not told.
        engine_sets: names of what was built of it.
    """

    sha256: Mapping[str, str | None]
    engine_sets: tuple[str, ...]


def check_target(target: Path, *sources: str | Path) -> OldBundle | None:
    """Refuse a target that holds something else than a bundle, or that nothing can stand in.

    Args:
        target: the folder that is to be a bundle.
        sources: what the bundle is made of; one that is no path here is passed over.

    Returns:
        The bundle that will be replaced; None: there is none.

    Raises:
        ValueError: a file, a link, a folder with other content, one that holds a source or lies in
            it, one in which engines are being built or this process runs, or a folder that is
            missing around it.
    """
    find_parent(target)
    for source in sources:
        check_apart(target, source)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"{target} is no directory: name a new one or an old bundle")
    if not target.is_dir():
        return None
    if not any(target.iterdir()):
        _check_not_here(target)
        return None
    if not os.path.lexists(target / MANIFEST_NAME):
        raise ValueError(
            f"{target} is a directory that is no bundle (no {MANIFEST_NAME}): it is left alone"
        )
    old = read_old(target)
    if old is None:
        raise ValueError(
            f"{target} is a directory with a {MANIFEST_NAME} that is not vlmedge's: it is left "
            "alone; name another target"
        )
    if any(is_at_work(folder) for folder in (target / ENGINES_FOLDER).glob(".*.partial-*")):
        raise ValueError(
            f"engines are being built in {target}: wait for that, or name another target"
        )
    if foreign := list(_find_foreign(target, old.sha256)):
        raise ValueError(
            f"{target} holds what is not the bundle's and would be lost: {_few(foreign)}; move it "
            "away, or name another target"
        )
    if edited := list(_find_edited(target, old.sha256)):
        raise ValueError(
            f"{target} was changed after it was written and would be lost: {_few(edited)}; move "
            "it away, or name another target"
        )
    _check_not_here(target)
    return old


def check_apart(target: Path, source: str | Path, *, may_lie_in: bool = False) -> None:
    """Refuse to write what is read, what is around it, or something within it.

    Folders are told apart by what they are, not by how they are called: links, `..`, the case of
    letters and mounts make no difference.

    Args:
        target: to write, there or not.
        source: to read; one that is no path here (a hub id) is passed over.
        may_lie_in: of a folder of which only such files are read that the target never holds.

    Raises:
        ValueError: says which of the three it is.
    """
    try:
        around_source = _list_around(Path(source)) if os.path.exists(source) else []
    except (OSError, ValueError):  # no path: too long a name, a zero byte
        return
    if not around_source:
        return
    around_target = _list_around(target)
    target_id, source_id = around_target[0], around_source[0]
    if target_id is not None and target_id == source_id:
        raise ValueError(f"{target} is what is read: name another one to write")
    if target_id is not None and target_id in around_source:
        raise ValueError(f"{target} holds {source}, what is read: name another one to write")
    if source_id in around_target[1:] and not may_lie_in:
        raise ValueError(f"{target} lies in {source}, what is read: name one outside of it")


def read_old(target: Path) -> OldBundle | None:
    """The bundle in a folder, of whatever version; None: it is none of ours."""
    path = target / MANIFEST_NAME
    if not path.is_file():  # to open a pipe would wait for its other end
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        manifest: Any = json.loads(data.decode("utf-8")) if len(data) <= MAX_MANIFEST_BYTES else 0
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict):
        return None
    version, files = manifest.get("schema_version"), manifest.get("files")
    created_by, family = manifest.get("created_by"), manifest.get("family")
    if type(version) is not int or not isinstance(family, str) or not isinstance(files, dict):
        return None
    if not isinstance(created_by, str) or not created_by.startswith(CREATOR):
        return None
    if not all(isinstance(record, dict) for record in files.values()):
        return None
    hashes = {name: record.get("sha256") for name, record in files.items()}
    return OldBundle(hashes, tuple(_list_engine_sets(target / ENGINES_FOLDER)))


def describe_loss(target: Path, old: OldBundle | None) -> str | None:
    """A line about the engines that went with an old bundle; None: there were none."""
    if old is None or not old.engine_sets:
        return None
    sets = _few(list(old.engine_sets))
    return f"the old {target} had engines ({sets}), which are gone with it: build them again"


def _check_not_here(target: Path) -> None:
    """Refuse to replace the folder that relative paths of this process begin in."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return
    if _list_around(target)[0] in _list_around(here):
        raise ValueError(
            f"{target} is the folder that this command runs in, which can't be replaced under it: "
            "go to another one and name it from there"
        )


def _list_around(path: Path) -> list[tuple[int, int] | None]:
    """Device and inode of a path and of every folder around it; None: not there."""
    found: list[tuple[int, int] | None] = []
    place = path.resolve()
    for each in (place, *place.parents):
        try:
            status = each.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found


def _find_foreign(target: Path, files: Mapping[str, object]) -> Iterator[str]:
    """What is neither the manifest, nor listed, nor an engine; a folder of such as one."""
    holders = {str(parent) for name in files for parent in Path(name).parents}

    def walk(folder: Path, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{prefix}{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            if name in files and not is_folder:
                continue
            if is_folder and name in holders:
                yield from walk(folder / entry.name, f"{name}/")
            elif is_folder and name != ENGINES_FOLDER:
                yield f"{name}/"
            elif not is_folder and name not in (MANIFEST_NAME, LOCK_NAME):
                yield name

    yield from walk(target, "")


def _find_edited(target: Path, files: Mapping[str, str | None]) -> Iterator[str]:
    """Texts that are not as they were written; large files are not read for it."""
    for name, sha256 in files.items():
        path = target / name
        if not name.endswith(_TEXTS) or not isinstance(sha256, str):
            continue
        if not path.is_file() or path.stat().st_size > _MAX_TEXT_BYTES:
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            yield name


def _list_engine_sets(folder: Path) -> list[str]:
    """Finished ones: a folder under way begins with a dot."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _few(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
