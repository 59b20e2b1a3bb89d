"""List what a bundle holds, and check that every file is still what the exporter wrote."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..files.regular_file import open_regular
from .manifest import MANIFEST_NAME, FileRecord, Manifest

BLOCK_BYTES = 1 << 20
ENGINES_FOLDER = "engines"

FileState = Literal["ok", "not hashed", "missing", "wrong size", "wrong hash"]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file of a bundle against its record in the manifest."""

    name: str
    bytes: int  # as the manifest says
    state: FileState

    @property
    def is_bad(self) -> bool:
        """Whether the bundle can't be trusted with this file in it."""
        return self.state not in ("ok", "not hashed")


def check_file(
    bundle: Path,
    name: str,
    record: FileRecord,
    *,
    with_hash: bool = True,
    on_bytes: Callable[[int], None] | None = None,
) -> FileCheck:
    """Compare one file's size, and its SHA-256 unless told not to, with the manifest's record.

    Args:
        bundle: the bundle's folder.
        name: the file's name in the bundle.
        record: what the manifest says of it.
        with_hash: read the whole file; without it only the size is looked at.
        on_bytes: called with the number of bytes read since the last call.
    """
    path = bundle / name
    if not path.is_file():
        return FileCheck(name, record.bytes, "missing")
    if path.stat().st_size != record.bytes:
        return FileCheck(name, record.bytes, "wrong size")
    if not with_hash:
        return FileCheck(name, record.bytes, "not hashed")
    digest = hashlib.sha256()
    buffer = bytearray(BLOCK_BYTES)
    with open_regular(path) as file:
        while num_read := file.readinto(buffer):
            digest.update(memoryview(buffer)[:num_read])
            if on_bytes:
                on_bytes(num_read)
    state: FileState = "ok" if digest.hexdigest() == record.sha256 else "wrong hash"
    return FileCheck(name, record.bytes, state)


def list_unlisted(bundle: Path, manifest: Manifest) -> list[str]:
    """Files in the folder that the manifest doesn't know: harmless, but nobody vouches for them."""
    known = {*manifest.files, MANIFEST_NAME}
    found = (path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    # Engines have a record of their own
    others = (path.as_posix() for path in found if path.parts[0] != ENGINES_FOLDER)
    return sorted(name for name in others if name not in known)


def count_precisions(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Part of the model -> precision -> number of checkpoint tensors stored in it."""
    parts: dict[str, Counter[str]] = {}
    for tensor, precision in manifest.precision.items():
        parts.setdefault(_find_part(tensor), Counter())[precision] += 1
    return {part: dict(parts[part].most_common()) for part in sorted(parts)}


def _find_part(tensor: str) -> str:
    names = tensor.split(".")
    for part, marker in (
        ("vision", "visual"),
        ("embedding", "embed_tokens"),
        ("lm_head", "lm_head"),
    ):
        if marker in names:
            return part
    return "decoder"
