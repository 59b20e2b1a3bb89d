"""A folder of files <-> a pack: one compressed archive in parts that are small enough to carry.

    PACK/pack.json                     what is in it, and every part's size and hash
    PACK/pack.tar.xz.0, .1, ...        parts of the archive, to be carried one by one

The archive holds `rtx/` (TensorRT-RTX) and `wheels/NAME/` (packages, unpacked), each a folder for
PYTHONPATH. Libraries are most of it: the filter for x86 code and a dictionary larger than the
largest of them save a third of what zip does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
PACK_NAME = "pack.json"
ARCHIVE_NAME = "pack.tar.xz"
MAX_PACK_BYTES = 60 * MIB
PART_BYTES = 30 * MIB  # beside a checkout of 12 MiB, in a transfer of at most 64
DICTIONARY_BYTES = 256 * MIB
RTX_FOLDER, WHEELS_FOLDER = "rtx", "wheels"
SCHEMA_VERSION = 1
_BLOCK = 4 * MIB


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a pack."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Pack:
    """What pack.json says.

    Attributes:
        python: the version whose extension modules are in it, "3.12".
        packages: what was packed -> its version.
        parts: of the archive, in order.
    """

    python: str
    packages: dict[str, str]
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts)


def write_pack(
    content: Path,
    folder: Path,
    *,
    python: str,
    packages: dict[str, str],
    part_bytes: int = PART_BYTES,
    max_bytes: int = MAX_PACK_BYTES,
    preset: int = 9 | lzma.PRESET_EXTREME,
    dictionary_bytes: int = DICTIONARY_BYTES,
) -> Pack:
    """Compress a folder into a new pack.

    Args:
        content: holds rtx/ and wheels/.
        folder: to write, replaced if there.
        python: version the content is for.
        packages: to record.
        part_bytes: of each part but the last.
        max_bytes: of all parts together.
        preset: of xz; the default takes minutes and 3 GiB.
        dictionary_bytes: how far back repetitions are seen.

    Raises:
        ValueError: it is larger than max_bytes; nothing is left behind.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder / ARCHIVE_NAME
    filters = [
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary_bytes},
    ]
    with (
        lzma.open(archive, "wb", check=lzma.CHECK_CRC64, filters=filters) as stream,
        tarfile.open(fileobj=stream, mode="w") as tar,
    ):
        for path in list_content(content):
            tar.add(path, path.relative_to(content).as_posix(), recursive=False, filter=_plain)
    size = archive.stat().st_size
    if size > max_bytes:
        shutil.rmtree(folder)
        raise ValueError(
            f"the pack has {size / MIB:.1f} MiB, at most {max_bytes / MIB:.0f} can be carried: "
            "leave packages out (--no-wheels)"
        )
    pack = Pack(python, packages, tuple(_split(archive, part_bytes)))
    archive.unlink()
    record = {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(pack)
    (folder / PACK_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return pack


def list_content(content: Path) -> list[Path]:
    """Files of a pack, large ones first: they share the dictionary's beginning."""
    files = [path for path in content.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (-path.stat().st_size, path.as_posix()))


def read_pack(folder: Path) -> Pack:
    """Read pack.json.

    Raises:
        ValueError: it is missing, damaged or of another version.
    """
    path = folder / PACK_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {raw['schema_version']}, needed {SCHEMA_VERSION}")
        parts = tuple(Part(**part) for part in raw["parts"])
        return Pack(raw["python"], dict(raw["packages"]), parts)
    except OSError as error:
        raise ValueError(
            f"{folder} holds no pack: make one with scripts/pack_tensorrt_rtx.py where there is "
            "a network"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): make the pack again") from error


def find_missing(folder: Path, pack: Pack) -> list[str]:
    """Parts that have not been carried here yet, or not whole."""
    return [
        part.file
        for part in pack.parts
        if not (folder / part.file).is_file() or (folder / part.file).stat().st_size != part.bytes
    ]


def unpack(folder: Path, target: Path) -> Pack:
    """Write a pack's content; a target that was written before is left as it is.

    Raises:
        ValueError: parts are missing or damaged.
    """
    pack = read_pack(folder)
    stamp = target / PACK_NAME
    content = (folder / PACK_NAME).read_bytes()
    if stamp.is_file() and stamp.read_bytes() == content:
        return pack
    if missing := find_missing(folder, pack):
        raise ValueError(f"{folder} lacks {', '.join(missing)}: carry every part here")
    shutil.rmtree(target, ignore_errors=True)
    joined = _JoinedParts(folder, pack.parts)
    with (
        io.BufferedReader(joined, _BLOCK) as raw,
        lzma.open(raw) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        tar.extractall(target, filter="data")
    # The last block of the archive may lie behind the last file's end.
    stamp.write_bytes(content)
    return pack


class _JoinedParts(io.RawIOBase):
    """The parts of an archive as one file, each checked against its hash when it has been read."""

    def __init__(self, folder: Path, parts: tuple[Part, ...]) -> None:
        self._blocks = _read_checked(folder, parts)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill some of the buffer; 0 at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _read_checked(folder: Path, parts: tuple[Part, ...]) -> Iterator[bytes]:
    """Whole parts: each is checked before any of it is used, and is no larger than memory."""
    for part in parts:
        data = (folder / part.file).read_bytes()
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise ValueError(f"{folder / part.file} is damaged: carry it again")
        yield data


def _split(archive: Path, part_bytes: int) -> Iterator[Part]:
    with archive.open("rb") as file:
        index = 0
        while data := file.read(part_bytes):
            name = f"{archive.name}.{index}"
            (archive.parent / name).write_bytes(data)
            yield Part(name, len(data), hashlib.sha256(data).hexdigest())
            index += 1


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without owner and time: the same content is the same pack."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    info.mode = 0o755 if info.mode & os.X_OK else 0o644
    return info
