"""Read the first directory of a TIFF file and refuse one of absurdly many parts, or of huge ones.

Pillow handles each strip or tile on its own: millions of them, of four bytes each in the file, take
minutes. And a tile is decoded whole, however small the picture is.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from ...errors import ImageError

MAX_PARTS = 1 << 16  # strips or tiles: one for each row of the tallest pictures
MAX_TILE_PIXELS = 1 << 26  # real tiles have a thousandth of that

_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_PARTS = (273, 324)  # offsets of strips, of tiles
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_SHORT = 3
_MAX_TAGS = 1 << 16


def check_tiff(file: BinaryIO, name: str) -> None:
    """Check the strips or tiles of a TIFF file's first picture; any other file is left alone.

    Args:
        file: at its start; its position is anywhere afterwards.
        name: how errors call the picture.

    Raises:
        ImageError: there are too many strips or tiles, or tiles that are too large.
    """
    header = file.read(16)
    order = _BYTE_ORDERS.get(header[:2])
    if order is None or len(header) < 8:
        return
    version = struct.unpack(order + "H", header[2:4])[0]
    if version == 43 and len(header) == 16:  # BigTIFF
        place, head, entry, kind = struct.unpack(order + "Q", header[8:])[0], "Q", "HHQQ", "Q"
    else:
        place, head, entry, kind = struct.unpack(order + "I", header[4:8])[0], "H", "HHII", "I"
    file.seek(min(place, 1 << 62))
    num_tags = file.read(struct.calcsize("=" + head))
    if len(num_tags) < struct.calcsize("=" + head):
        return
    count = min(struct.unpack(order + head, num_tags)[0], _MAX_TAGS)
    size = struct.calcsize("=" + entry)
    data = file.read(count * size)
    tile = {_TILE_WIDTH: 0, _TILE_HEIGHT: 0}
    for start in range(0, len(data) - size + 1, size):
        tag, form, num_values, value = struct.unpack(order + entry, data[start : start + size])
        if tag in _PARTS and num_values > MAX_PARTS:
            raise ImageError(
                f"{name} is a TIFF of {num_values} strips or tiles, at most {MAX_PARTS} are "
                "decoded: save the picture anew if you trust it"
            )
        if tag in tile:
            raw = struct.pack(order + kind, value)
            tile[tag] = struct.unpack(order + "H", raw[:2])[0] if form == _SHORT else value
    if tile[_TILE_WIDTH] * tile[_TILE_HEIGHT] > MAX_TILE_PIXELS:
        raise ImageError(
            f"{name} is a TIFF with tiles of {tile[_TILE_WIDTH]}x{tile[_TILE_HEIGHT]}, at most "
            f"{MAX_TILE_PIXELS} pixels are decoded at once: save the picture anew if you trust it"
        )
