"""JPEG 2000 files of absurdly many tiles, precincts, code blocks or packets are refused unread."""

import io
import struct
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageFile

from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs.formats.jpeg2000_parts import check_jpeg2000
from vlmedge.runtime.inputs.images import open_image, read_image, read_size

SIDE = 9000


def make_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2) + content


def make_style(num_resolutions, precinct, block):
    style = bytes([num_resolutions - 1, block, block, 0, 1])
    return style if precinct is None else style + bytes([precinct * 17] * num_resolutions)


def make_codestream(
    *,
    side=SIDE,
    tile=None,
    num_components=3,
    num_resolutions=5,
    precinct=None,
    num_layers=1,
    block=4,
    main=b"",
    part=b"",
):
    """A codestream that announces much and has data for nothing; `main` and `part` are put in."""
    tile = side if tile is None else tile
    size = struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, num_components)
    coding = struct.pack(">BBHB", precinct is not None, 2, num_layers, 0)
    steps = bytes([0x40] * (3 * num_resolutions - 1))
    data = bytes(20)
    return (
        b"\xff\x4f"
        + make_segment(0xFF51, size + bytes([7, 1, 1]) * num_components)
        + make_segment(0xFF52, coding + make_style(num_resolutions, precinct, block))
        + make_segment(0xFF5C, steps)
        + main
        + make_segment(0xFF90, struct.pack(">HIBB", 0, 14 + len(part) + len(data), 0, 1))
        + part
        + b"\xff\x93"
        + data
        + b"\xff\xd9"
    )


def make_box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def make_jp2(codestream: bytes, side=SIDE) -> bytes:
    header = make_box(b"ihdr", struct.pack(">IIHBBBB", side, side, 3, 7, 7, 0, 0))
    header += make_box(b"colr", b"\1\0\0" + struct.pack(">I", 16))
    return (
        make_box(b"jP  ", b"\r\n\x87\n")
        + make_box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
        + make_box(b"jp2h", header)
        + make_box(b"jp2c", codestream)
    )


FINE = bytes([1, 2, 0, 1, 0]) + make_style(5, 1, 4)  # COD with precincts of 2 x 2
FINE_COMPONENT = bytes([0, 1]) + make_style(5, 1, 4)  # COC with the same
ABSURD = {
    "precincts": ({"precinct": 1}, "303750000 precincts"),
    "precincts of one component": ({"main": make_segment(0xFF53, FINE_COMPONENT)}, "precincts"),
    "precincts of one tile": ({"part": make_segment(0xFF52, FINE)}, "precincts"),
    "precincts of a tile's component": ({"part": make_segment(0xFF53, FINE_COMPONENT)}, "precinct"),
    "tiles": ({"tile": 36}, "62500 tiles"),
    "code blocks": ({"block": 0}, "15187500 code blocks"),
    "layers": ({"precinct": 8, "num_layers": 65535}, "19440 precincts of 65535 layers"),
}


@pytest.mark.parametrize("wrap", [bytes, make_jp2], ids=["codestream", "file"])
@pytest.mark.parametrize(("changes", "match"), ABSURD.values(), ids=ABSURD)
def test_absurdly_many_parts_are_refused_undecoded(changes, match, wrap):
    data = wrap(make_codestream(**changes))
    with (
        mock.patch.object(ImageFile.ImageFile, "load", side_effect=AssertionError("decoded")),
        pytest.raises(ImageError, match=match),
    ):
        read_image(data)


def test_components_are_counted_in_the_codestream():
    """The file's header may announce fewer."""
    file = io.BytesIO(make_jp2(make_codestream(num_components=200)))
    with pytest.raises(ImageError, match="200 components"):
        check_jpeg2000(file, "picture", (SIDE, SIDE))


def test_a_picture_that_the_caller_opened_is_checked_too():
    picture = Image.open(io.BytesIO(make_jp2(make_codestream(precinct=1))))
    with pytest.raises(ImageError, match="precincts"):
        open_image(picture)


@pytest.mark.parametrize(
    "data",
    [
        make_jp2(make_codestream(side=SIDE * 7)),  # another size than the file's header
        make_codestream(main=b"\xff\x59\x00\x04\x00\x00"),  # read otherwise by OpenJPEG
        make_codestream(main=make_segment(0xFF51, bytes(36))),
        make_codestream(num_resolutions=40),
        make_jp2(b"\xff\xff\xff\xff"),
    ],
)
def test_headers_that_make_no_sense_are_refused(data):
    with pytest.raises(ImageError, match="makes no sense"):
        read_image(data)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile_size": (32, 16)},
        {"num_resolutions": 3, "codeblock_size": (16, 16), "precinct_size": (32, 32)},
        {"quality_layers": [40, 20, 1], "quality_mode": "dB", "progression": "RPCL"},
        {"no_jp2": True, "offset": (5, 3), "tile_offset": (2, 1), "tile_size": (32, 32)},
    ],
)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_real_files_are_read_as_pillow_reads_them(mode, options):
    levels = np.random.default_rng(0).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    picture = Image.fromarray(levels).convert(mode)
    file = io.BytesIO()
    picture.save(file, "JPEG2000", **options)
    expected = Image.open(io.BytesIO(file.getvalue()))
    assert read_size(file.getvalue()) == (expected.height, expected.width)
    wanted = np.asarray(expected.convert("RGB"))
    assert (read_image(file.getvalue(), policy="transformers") == wanted).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({"precinct": 1}, True),
        ({"block": 0}, True),
        ({"tile": 64}, False),
        ({"precinct": 6, "num_resolutions": 8}, False),  # 477,144 precincts
        ({"side": 512, "precinct": 7, "num_layers": 65535, "num_resolutions": 3}, False),
    ],
)
def test_what_is_left_decodes_in_two_gib(changes, is_refused):
    code = (
        "import resource, sys\n"
        "from vlmedge.runtime.inputs.images import read_image\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)\n"
        "print(read_image(sys.stdin.buffer.read()).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=make_codestream(**changes),
        capture_output=True,
        check=False,
        timeout=120,
    )
    side = changes.get("side", SIDE)
    if is_refused:
        assert b"ImageError" in done.stderr
        assert b"JPEG 2000 of" in done.stderr
    else:
        assert done.stdout.decode() == f"({side}, {side}, 3)\n", done.stderr.decode()[-400:]
