"""Read the markers of a JPEG 2000 file and refuse absurdly many parts, before anything is decoded.

OpenJPEG allocates some hundred bytes for every tile, precinct and code block that the header
announces, whether the file has data for it or not: a file of 200 bytes can ask for gigabytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from ...errors import ImageError

# A picture of the largest size in RGB that is cut into precincts or tiles of 64x64 has 400,000
# precincts; one of code blocks of 32x32 has 350,000 of them.
MAX_TILES = 1 << 15
MAX_PRECINCTS = 1 << 19
MAX_BLOCKS = 1 << 20
MAX_PACKETS = 1 << 24  # one for each precinct and quality layer
MAX_COMPONENTS = 4  # Pillow has no mode with more
MAX_TILE_PARTS = 1 << 17
MAX_BOXES = 1 << 12

_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_SOC, _SIZ, _COD, _COC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53
_SOT, _SOD = 0xFF90, 0xFF93
# CAP, SIZ, COD, COC, TLM, PLM, PLT, QCD, QCC, RGN, POC, PPM, PPT, CRG, COM and those of part 2. At
# any other, OpenJPEG looks for the next marker at every second byte, and would see other markers.
_OTHERS = b"\x50\x55\x57\x58\x5c\x5d\x5e\x5f\x60\x61\x63\x64\x74\x75\x77\x78"
_SEGMENTS = frozenset({_SIZ, _COD, _COC, *(0xFF00 | code for code in _OTHERS)})


@dataclass(frozen=True, slots=True)
class _Grid:
    """The picture's size and its tiles, in pixels, from SIZ."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    num_tiles: int
    num_components: int


@dataclass(slots=True)
class _Extremes:
    """The finest cut that any tile or component asks for."""

    num_resolutions: int = 1
    num_layers: int = 1
    step_x: int = 1 << 15  # between two precincts of any resolution, in pixels of the picture
    step_y: int = 1 << 15
    block_width: int = 1024
    block_height: int = 1024


def check_jpeg2000(file: BinaryIO, name: str, size: tuple[int, int]) -> None:
    """Check the tiles, precincts, code blocks and layers of a JPEG 2000 file or codestream.

    Args:
        file: at its start; its position is anywhere afterwards.
        name: how errors call the picture.
        size: width and height as Pillow has them.

    Raises:
        ImageError: there are too many parts, the codestream has another size than the file's
            header, or the markers make no sense.
    """
    if not _find_codestream(file):
        raise _broken(name)
    grid: _Grid | None = None
    finest = _Extremes()
    num_tile_parts = 0
    part_start = part_length = 0
    while (data := file.read(2)) and len(data) == 2:
        marker = int.from_bytes(data, "big")
        if marker == _SOD:
            if not part_length:
                break  # the last part goes on to the end of the file
            file.seek(part_start + part_length)
            continue
        if marker not in _SEGMENTS and marker != _SOT:
            if num_tile_parts:
                break  # the end, or a marker that OpenJPEG takes for it
            raise _broken(name)
        start = file.tell()
        length = int.from_bytes(file.read(2), "big")
        segment = file.read(length - 2) if length > 2 else b""
        if len(segment) != length - 2:
            break  # cut off
        if marker == _SIZ:
            if grid is not None:
                raise _broken(name)
            grid = _read_grid(segment, name, size)
        elif marker == _SOT:
            if len(segment) != 8:
                raise _broken(name)
            part_start, part_length = start - 2, int.from_bytes(segment[2:6], "big")
            if 0 < part_length < 14:
                raise _broken(name)
            num_tile_parts += 1
            if num_tile_parts > MAX_TILE_PARTS:
                raise _refuse(name, f"over {MAX_TILE_PARTS} parts of tiles")
        elif marker in (_COD, _COC):
            if grid is None:
                raise _broken(name)
            _take_style(finest, marker, segment, name)
            _check_cut(grid, finest, name)
    if grid is None:
        raise _broken(name)


def _find_codestream(file: BinaryIO) -> bool:
    """Go to the first marker after the codestream's start; False if there is none."""
    head = file.read(len(_JP2))
    if head != _JP2:
        file.seek(2)
        return int.from_bytes(head[:2], "big") == _SOC
    for _ in range(MAX_BOXES):
        start = file.tell()
        head = file.read(8)
        if len(head) < 8:
            return False
        length, kind = struct.unpack(">I4s", head)
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if kind == b"jp2c":
            return int.from_bytes(file.read(2), "big") == _SOC
        if not 8 <= length <= 1 << 62:
            return False
        file.seek(start + length)
    return False


def _read_grid(segment: bytes, name: str, size: tuple[int, int]) -> _Grid:
    if len(segment) < 36:
        raise _broken(name)
    right, bottom, left, top, width, height, tile_left, tile_top, num_components = struct.unpack(
        ">8IH", segment[2:36]
    )
    if not (width and height and left < right and top < bottom and num_components):
        raise _broken(name)
    if num_components > MAX_COMPONENTS:
        raise _refuse(name, f"{num_components} components, at most {MAX_COMPONENTS} are decoded")
    if (right - left, bottom - top) != size or tile_left > left or tile_top > top:
        raise _broken(name)
    num_tiles = -(-(right - tile_left) // width) * -(-(bottom - tile_top) // height)
    if num_tiles > MAX_TILES:
        raise _refuse(name, f"{num_tiles} tiles, at most {MAX_TILES} are decoded")
    return _Grid(
        right - left,
        bottom - top,
        min(width, right - left),
        min(height, bottom - top),
        num_tiles,
        num_components,
    )


def _take_style(finest: _Extremes, marker: int, segment: bytes, name: str) -> None:
    """Take a coding style into account; COC has that of one component, without the layers."""
    if marker == _COD:
        flags, layers, style = segment[:1], segment[2:4], segment[5:]
        finest.num_layers = max(finest.num_layers, int.from_bytes(layers, "big"))
    else:
        flags, style = segment[1:2], segment[2:]
    if len(style) < 5 or not flags:
        raise _broken(name)
    num_resolutions = style[0] + 1
    if num_resolutions > 33:
        raise _broken(name)
    finest.num_resolutions = max(finest.num_resolutions, num_resolutions)
    finest.block_width = min(finest.block_width, 4 << (style[1] & 15))
    finest.block_height = min(finest.block_height, 4 << (style[2] & 15))
    if not flags[0] & 1:
        return
    sizes = style[5 : 5 + num_resolutions]
    if len(sizes) < num_resolutions:
        raise _broken(name)
    for level, exponents in enumerate(sizes):
        halvings = num_resolutions - 1 - level
        finest.step_x = min(finest.step_x, 1 << ((exponents & 15) + halvings))
        finest.step_y = min(finest.step_y, 1 << ((exponents >> 4) + halvings))


def _check_cut(grid: _Grid, finest: _Extremes, name: str) -> None:
    """Bound the counts from above, as if every tile and resolution were cut like the finest."""
    cells = grid.num_tiles * grid.num_components
    precincts = (
        cells
        * finest.num_resolutions
        * _count(grid.tile_width, finest.step_x)
        * _count(grid.tile_height, finest.step_y)
    )
    if precincts > MAX_PRECINCTS:
        raise _refuse(name, f"up to {precincts} precincts, at most {MAX_PRECINCTS} are decoded")
    if precincts * finest.num_layers > MAX_PACKETS:
        raise _refuse(
            name,
            f"up to {precincts} precincts of {finest.num_layers} layers, at most {MAX_PACKETS} "
            "packets are decoded",
        )
    blocks = (
        cells
        * _count(grid.tile_width, finest.block_width)
        * _count(grid.tile_height, finest.block_height)
    )
    if blocks > MAX_BLOCKS:
        raise _refuse(name, f"{blocks} code blocks, at most {MAX_BLOCKS} are decoded")


def _count(length: int, step: int) -> int:
    return -(-length // step)


def _refuse(name: str, what: str) -> ImageError:
    return ImageError(f"{name} is a JPEG 2000 of {what}: save the picture anew if you trust it")


def _broken(name: str) -> ImageError:
    return ImageError(f"{name} is a broken picture: its JPEG 2000 header makes no sense")
