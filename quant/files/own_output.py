"""Files that a user names for results: vlmedge's own are replaced, others only by --force.

Each kind has a mark by which a file of any version is known. Scripts and recipes, which people go
on to edit, end in a line with a hash of all above it: once they are edited they are somebody's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...runtime.files.regular_file import name_other_kind
from .bundle_target import check_apart
from .target_lock import find_parent

_EDGE_BYTES = 8 << 10  # of a file's head and end that are looked at for a mark
_MAX_BYTES = 1 << 30  # of a file that is read whole
_SIGNATURE = re.compile(rb"# Written by vlmedge; SHA-256 of the lines above: ([0-9a-f]{64})\n")


def sign_text(text: str) -> str:
    """Add the line that says who wrote a text, as a comment of shells and TOML.

    Args:
        text: whole lines.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}# Written by vlmedge; SHA-256 of the lines above: {digest}\n"


def check_output(
    path: Path, kind: str, *, force: bool = False, apart_from: Iterable[str | Path] = ()
) -> None:
    """Refuse to write where something of somebody else would be lost; asked before the long work.

    Args:
        path: the file to write.
        kind: a key of `KINDS`.
        force: overwrite other files as well.
        apart_from: bundles and files that are read or written besides; nothing is written into
            them, whether by force or not.

    Raises:
        ValueError: says what is there and what to do.
    """
    parent = find_parent(path)
    for source in apart_from:
        check_apart(path, source)
    if not os.path.lexists(path):
        if not os.access(parent, os.W_OK):
            raise ValueError(f"{parent} can't be written to: name another place")
        return
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is no plain file: it is left alone, name another one")
    noun, is_ours = KINDS[kind]
    if not force and not _ask(is_ours, path):
        raise ValueError(
            f"{path} is there and is no {noun}: --force overwrites it, or name another one"
        )


def check_outputs(
    folder: Path,
    kinds: Mapping[str, str],
    *,
    force: bool = False,
    apart_from: Iterable[str | Path] = (),
) -> None:
    """The same of several files in a folder, which is made if need be.

    Args:
        folder: to write to.
        kinds: a file's name -> a key of `KINDS`.
        force: see check_output.
        apart_from: see check_output.

    Raises:
        ValueError: see check_output; or the folder is something else.
        OSError: the folder can't be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is {name_other_kind(folder) or 'a file'}, needed a folder")
    sources = tuple(apart_from)
    for source in sources:
        for name in kinds:  # before it is made there
            check_apart(folder / name, source)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is no folder to write to: name another one")
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in kinds.items():
        check_output(folder / name, kind, force=force, apart_from=sources)


def is_signed(content: bytes) -> bool:
    """Whether a text is as `sign_text` made it."""
    start = content.rfind(b"\n", 0, -1) + 1  # of the last line
    found = _SIGNATURE.fullmatch(content[start:])
    return found is not None and found[1].decode() == hashlib.sha256(content[:start]).hexdigest()


def _ask(is_ours: Callable[[Path], bool], path: Path) -> bool:
    """What can't be read is not known to be ours."""
    try:
        return path.stat().st_size <= _MAX_BYTES and is_ours(path)
    except (OSError, ValueError, RecursionError, tarfile.TarError):
        return False


def _is_page(path: Path) -> bool:
    """HTML of page.py: its own word for who made it, or the footer of older ones."""
    with path.open("rb") as file:
        head = file.read(_EDGE_BYTES)
        file.seek(max(0, path.stat().st_size - _EDGE_BYTES))
        end = file.read()
    return b'<meta name="generator" content="vlmedge ' in head or b"<footer>vlmedge " in end


def _is_junit(path: Path) -> bool:
    with path.open("rb") as file:
        return b'<testsuites name="vlmedge check"' in file.read(_EDGE_BYTES)


def _has_keys(*keys: str) -> Callable[[Path], bool]:
    """A JSON object with all of these."""

    def is_ours(path: Path) -> bool:
        content: Any = json.loads(path.read_bytes())
        return isinstance(content, dict) and content.keys() >= set(keys)

    return is_ours


def _is_archive(path: Path) -> bool:
    """A tar whose first file is a script of ours."""
    with tarfile.open(path, "r:") as tar:
        first = tar.next()
        if first is None or not first.isfile():
            return False
        script = tar.extractfile(first)
        return script is not None and is_signed(script.read(_MAX_BYTES))


# kind -> what an error calls it, and whether a file is one
KINDS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "page": ("report of vlmedge's", _is_page),
    "junit": ("report of vlmedge's", _is_junit),
    "check": (
        "report of vlmedge's",
        _has_keys("schema_version", "passed", "gate", "limits", "guilty", "result"),
    ),
    "sensitivity": (
        "report of vlmedge's",
        _has_keys("schema", "bundle", "recipe", "mode", "buckets", "total", "layers"),
    ),
    "calibration": (
        "calibration of vlmedge's",
        _has_keys("schema", "model", "data", "data_sha256", "num_examples", "layers"),
    ),
    "recipe": ("recipe as vlmedge wrote it", lambda path: is_signed(path.read_bytes())),
    "script": ("script as vlmedge wrote it", lambda path: is_signed(path.read_bytes())),
    "archive": ("tar as vlmedge wrote it", _is_archive),
}
