"""Read and write BUNDLE/manifest.json; what is read is checked, types and values."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..errors import BundleError
from ..files.path_kind import explain_no_bundle
from ..files.plain_text import check_plain
from ..files.regular_file import name_other_kind, open_regular
from ..files.strict import parse_object, read_strict
from .manifest import MANIFEST_NAME, Manifest
from .manifest_checks import check_manifest
from .manifest_seal import CHECKSUM, check_seal, seal_manifest

SCHEMA_VERSION = 3  # what is written
UNSEALED_VERSION = 2  # what is read as well: the same without a checksum
MAX_MANIFEST_BYTES = 16 << 20  # a 72B manifest with every weight's precision is under 1 MiB
# The texts of many lines; an answer may stop at an empty line
_LONG_TEXTS = (
    f"{MANIFEST_NAME}.quantization.recipe_toml",
    f"{MANIFEST_NAME}.generation.stop_strings",
)


def to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON with its checksum and a final newline, of today's schema."""
    return seal_manifest(dataclasses.asdict(manifest) | {"schema_version": SCHEMA_VERSION})


def parse_manifest(text: str, *, check_checksum: bool = True) -> Manifest:
    """Read a manifest's JSON, strictly: unknown, missing and wrongly typed keys are errors.

    Args:
        text: of the file.
        check_checksum: without it a checksum may be wrong or missing, as after an edit by hand.

    Raises:
        BundleError: names the offending key, what was got and what was needed.
    """
    raw = parse_object(text, MANIFEST_NAME, BundleError)
    version = raw.get("schema_version")
    if version not in (SCHEMA_VERSION, UNSEALED_VERSION):
        raise BundleError(
            f"bundle has schema version {version!r:.80}, this runtime reads {UNSEALED_VERSION} and "
            f"{SCHEMA_VERSION}: export it again with this version of vlmedge"
        )
    if version == SCHEMA_VERSION:
        if check_checksum:
            check_seal(text, MANIFEST_NAME)
        raw.pop(CHECKSUM, None)
    check_plain(raw, MANIFEST_NAME, BundleError, long_texts=_LONG_TEXTS)
    manifest = read_strict(raw, Manifest, MANIFEST_NAME, BundleError)
    check_manifest(manifest)
    return manifest


def read_manifest(bundle: str | Path, *, check_files: bool = True) -> Manifest:
    """Read and check BUNDLE/manifest.json and that every file it lists is there in full size.

    Hashes of files are not computed here (that reads gigabytes): `vlmedge inspect` does. It also
    asks for `check_files=False`, to tell of all files rather than stop at the first that is wrong.

    Raises:
        BundleError: no such folder, no manifest, a damaged one, or a missing or truncated file.
    """
    folder = Path(bundle)
    manifest = parse_manifest(read_manifest_text(folder))
    for name, record in manifest.files.items() if check_files else ():
        file_path = folder / name
        if not file_path.exists():
            raise BundleError(f"bundle {folder} lacks the file {name}")
        if kind := name_other_kind(file_path):
            raise BundleError(f"{file_path}: it is {kind}, a regular file is needed")
        size = file_path.stat().st_size
        if size != record.bytes:
            raise BundleError(f"{file_path} has {size} bytes, the manifest says {record.bytes}")
    return manifest


def reseal_manifest(bundle: str | Path) -> None:
    """Write BUNDLE/manifest.json with a checksum of what it says now, after an edit by hand.

    One of the older schema gets its first. What else `parse_manifest` refuses stays refused.

    Raises:
        BundleError: it is no manifest, or a wrong one.
        OSError: it can't be written; the old one is still there.
    """
    folder = Path(bundle)
    text = to_json(parse_manifest(read_manifest_text(folder), check_checksum=False))
    temporary = folder / f".{MANIFEST_NAME}.partial-{os.getpid()}"
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest_text(folder: Path) -> str:
    """The text of BUNDLE/manifest.json, not yet parsed.

    Raises:
        BundleError: no such folder, no manifest, or one that is no text or too large.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise BundleError(explain_no_bundle(folder))
    try:
        with open_regular(path) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        reason = f"no readable {MANIFEST_NAME} ({error.strerror})"
        raise BundleError(f"{folder} is not a bundle: {reason}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is over {MAX_MANIFEST_BYTES} bytes: not a vlmedge manifest")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8: {error}") from error
