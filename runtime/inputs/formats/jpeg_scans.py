"""Read a JPEG file's markers and refuse what is legal but absurd, before anything is decoded.

Every scan of a progressive JPEG goes over the whole picture, and a scan that changes nothing takes
a dozen bytes: 20,000 of them, in a file of 3 MB, decode for minutes. And Pillow joins the segments
of EXIF data one by one, copying all of it each time.
"""

from __future__ import annotations

import re
from typing import BinaryIO

from ...errors import ImageError

# libjpeg writes 10 scans, the most elaborate scripts of optimizers under 30; libtiff also takes
# at most 100.
MAX_SCANS = 100
MAX_SEGMENTS = 4000  # 256 MB of them; a colour profile has 255 at most, a depth map some hundreds
MAX_EXIF_SEGMENTS = 64  # 4 MB; the standard has one
MAX_JUNK_BYTES = 1 << 16  # between two segments; Pillow skips them one by one

START = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # no stuffed byte, no restart
_SOS, _TEM, _APP1 = 0xDA, 0x01, 0xE1
_EDGES = (0xD8, 0xD9)  # start and end of an image
# Markers that Pillow skips without their segments; libjpeg gives up at them.
_UNKNOWN = (0xC8, *range(0xF0, 0xFE))
_BLOCK_BYTES = 1 << 20
_NO_HEADER = "its JPEG header makes no sense"
_ADVICE = "no camera or program writes such a file; save the picture anew if you trust it"


def check_jpeg(file: BinaryIO, name: str) -> None:
    """Check the markers of a JPEG file; any other file is left alone.

    Reads the file at most twice and leaves its position anywhere. Broken files are left to the
    decoder.

    Args:
        file: at its start.
        name: how errors call the picture.

    Raises:
        ImageError: there are too many scans or segments, or too many bytes between them.
    """
    if file.read(len(START)) != START:
        return
    file.seek(2)
    num_scans = num_segments = num_exif = 0
    while (found := _find_marker(file)) is not None:
        marker, num_skipped = found
        if num_scans and marker in _EDGES:
            return  # the first picture ends here, and it is the one that is decoded
        if not num_scans and (num_skipped > MAX_JUNK_BYTES or marker in (*_EDGES, *_UNKNOWN)):
            raise ImageError(f"{name} is a broken picture: {_NO_HEADER}")
        num_segments += 1
        if num_segments > MAX_SEGMENTS:
            raise ImageError(f"{name} has over {MAX_SEGMENTS} JPEG segments: {_ADVICE}")
        if marker == _TEM:
            continue
        length = int.from_bytes(file.read(2), "big")
        start = file.tell()
        if length < 2 and not num_scans:
            raise ImageError(f"{name} is a broken picture: {_NO_HEADER}")
        if length < 2:
            return
        num_exif += marker == _APP1 and file.read(6) == b"Exif\0\0"
        if num_exif > MAX_EXIF_SEGMENTS:
            raise ImageError(
                f"{name} has over {MAX_EXIF_SEGMENTS} JPEG segments of EXIF data: {_ADVICE}"
            )
        file.seek(start + length - 2)
        if marker == _SOS:
            num_scans += 1
            if num_scans == 1 and not _may_have_many_scans(file):
                return
        if num_scans > MAX_SCANS:
            raise ImageError(f"{name} is a JPEG of over {MAX_SCANS} scans: {_ADVICE}")


def _find_marker(file: BinaryIO) -> tuple[int, int] | None:
    """The next marker, and how many bytes come before it; the file's position is after it."""
    start = file.tell()
    here, size = start, 64
    while block := file.read(size):
        if match := _MARKER.search(block):
            file.seek(here + match.end())
            return block[match.end() - 1], here + match.start() - start
        # A marker may begin with the block's last byte.
        here += len(block) - (block.endswith(b"\xff") and len(block) > 1)
        file.seek(here)
        size = min(size * 8, _BLOCK_BYTES)
    return None


def _may_have_many_scans(file: BinaryIO) -> bool:
    """Whether the rest has a scan's marker often enough; the file's position stays."""
    start, count, last = file.tell(), 0, b""
    while block := file.read(_BLOCK_BYTES):
        count += (last + block).count(bytes([0xFF, _SOS]))
        last = block[-1:]
    file.seek(start)
    return count >= MAX_SCANS
