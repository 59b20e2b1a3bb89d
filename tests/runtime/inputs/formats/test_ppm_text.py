"""PPM files of endless headers or very many comments are refused before they are decoded."""

import io
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs.formats.ppm_text import MAX_COMMENTS, MAX_HEADER_BYTES
from vlmedge.runtime.inputs.images import read_image


@pytest.mark.parametrize("kind", [b"P1", b"P3", b"P4", b"P6", b"Pf"])
@pytest.mark.parametrize("filling", [b" ", b"#x\n", b"#" + b"x" * MAX_HEADER_BYTES + b"\n"])
def test_long_headers_are_refused_unopened(kind, filling):
    data = (
        kind + b" " + filling * (MAX_HEADER_BYTES // len(filling) + 1) + b"8 8 255\n" + bytes(800)
    )
    with (
        mock.patch.object(Image, "open", side_effect=AssertionError("was opened")),
        pytest.raises(ImageError, match="header takes over 65536 bytes"),
    ):
        read_image(data)


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3"])
def test_many_comments_among_pixels_are_refused_unopened(kind):
    data = kind + b" 8 8 255\n" + b"#x\n" * (MAX_COMMENTS + 1) + b"1 " * 192
    with (
        mock.patch.object(Image, "open", side_effect=AssertionError("was opened")),
        pytest.raises(ImageError, match="over 1000 comments"),
    ):
        read_image(data)


def test_some_comments_are_read():
    levels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    text = b"P3 # by hand\n8 8 255\n" + b"#x\n" * 900 + b" ".join(b"%d" % n for n in levels.flat)
    assert (read_image(text) == levels).all()


@pytest.mark.parametrize(("mode", "level"), [("1", 255), ("L", 32), ("L", 35), ("RGB", 32)])
def test_pixels_that_look_like_spaces_or_comments_are_no_header(mode, level):
    """32 is a space, 35 begins a comment."""
    file = io.BytesIO()
    picture = Image.new(mode, (900, 900), level if mode != "RGB" else (level,) * 3)
    picture.save(file, "PPM")
    assert (read_image(file.getvalue()) == np.asarray(picture.convert("RGB"))).all()
