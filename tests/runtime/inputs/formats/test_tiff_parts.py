"""TIFF files of absurdly many strips, and of huge tiles, are refused by their directory."""

import io
import struct
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs.formats.tiff_parts import MAX_PARTS, check_tiff
from vlmedge.runtime.inputs.images import read_image

SHAPE = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1}  # 8 x 8, gray, not compressed


def make_tiff(order, tags):
    """A directory of 32-bit numbers; a list is (how many there are, where they are)."""
    entries = [
        struct.pack(order + "HHII", tag, 4, *(value if isinstance(value, tuple) else (1, value)))
        for tag, value in sorted(tags.items())
    ]
    start = b"II*\0" if order == "<" else b"MM\0*"
    head = start + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(entries) + bytes(4 + 100_000)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tag", [273, 324])
def test_many_strips_and_tiles_are_refused_unread(order, tag):
    data = make_tiff(order, SHAPE | {tag: (MAX_PARTS + 1, 8)})
    with (
        mock.patch.object(Image, "open", side_effect=AssertionError("was opened")),
        pytest.raises(ImageError, match="65537 strips or tiles"),
    ):
        read_image(data)
    check_tiff(io.BytesIO(make_tiff(order, SHAPE | {tag: (MAX_PARTS, 8)})), "picture")


@pytest.mark.parametrize("order", ["<", ">"])
def test_huge_tiles_are_refused(order):
    tags = SHAPE | {322: 1 << 14, 323: 1 << 14, 324: 8}
    with pytest.raises(ImageError, match="tiles of 16384x16384"):
        read_image(make_tiff(order, tags))


@pytest.mark.parametrize("data", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0+" + b"\xff" * 12])
def test_broken_files_are_left_to_the_decoder(data):
    check_tiff(io.BytesIO(data), "picture")


def test_pictures_of_one_row_a_strip_are_read():
    levels = np.random.default_rng(0).integers(0, 256, (300, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "TIFF", compression="tiff_lzw", strip_size=60)
    assert (read_image(file.getvalue()) == levels).all()
