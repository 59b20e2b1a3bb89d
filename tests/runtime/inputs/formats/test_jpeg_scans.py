"""Which JPEG files are refused by their markers alone."""

import contextlib
import io
import struct
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs.formats import jpeg_scans
from vlmedge.runtime.inputs.formats.jpeg_scans import (
    MAX_EXIF_SEGMENTS,
    MAX_SCANS,
    MAX_SEGMENTS,
    check_jpeg,
)
from vlmedge.runtime.inputs.images import open_image, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def encode(**options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", **options)
    return file.getvalue()


PROGRESSIVE = encode(progressive=True)
NUM_SCANS = 10  # of libjpeg's own script for colour


def add_scans(number):
    """The last scan, which refines, again and again."""
    scan = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
    return PROGRESSIVE[:-2] + scan * number + PROGRESSIVE[-2:]


def segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def insert(*segments):
    """A baseline file with more segments at its start."""
    data = encode()
    return data[:2] + b"".join(segments) + data[2:]


def test_as_many_scans_as_allowed_are_decoded():
    assert PROGRESSIVE.count(b"\xff\xda") == NUM_SCANS
    assert read_image(add_scans(MAX_SCANS - NUM_SCANS)).shape == PIXELS.shape


def test_one_scan_more_is_refused_before_anything_is_decoded(tmp_path):
    data = add_scans(MAX_SCANS - NUM_SCANS + 1)
    (tmp_path / "bomb.jpg").write_bytes(data)
    with mock.patch.object(Image, "open", side_effect=AssertionError("was decoded")):
        for source in (data, tmp_path / "bomb.jpg"):
            with pytest.raises(ImageError, match=f"JPEG of over {MAX_SCANS} scans"):
                read_image(source)


@pytest.mark.parametrize("block_bytes", [64, 65, 67, 1 << 20])
def test_scans_are_counted_wherever_blocks_end(monkeypatch, block_bytes):
    monkeypatch.setattr(jpeg_scans, "_BLOCK_BYTES", block_bytes)
    check_jpeg(io.BytesIO(add_scans(MAX_SCANS - NUM_SCANS)), "picture")
    with pytest.raises(ImageError, match="scans"):
        check_jpeg(io.BytesIO(add_scans(MAX_SCANS - NUM_SCANS + 1)), "picture")


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 1}, {"progressive": True}])
def test_what_looks_like_a_scan_in_other_data_does_not_count(options):
    looks = b"\xff\xda\x00\x08" * 1000
    data = encode(comment=looks, **options)
    assert (read_image(data) == np.asarray(Image.open(io.BytesIO(data)))).all()
    behind = data + looks  # behind the picture's end, as the further pictures of an MPO file are
    assert (read_image(behind) == read_image(data)).all()


def test_fill_bytes_before_a_marker_hide_no_scan():
    data = add_scans(MAX_SCANS).replace(b"\xff\xda", b"\xff\xff\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        read_image(data)


@pytest.mark.parametrize(
    "data",
    [
        insert(*[segment(0xE5, b"")] * (MAX_SEGMENTS + 1)),
        insert(*[segment(0xFE, b"a comment")] * (MAX_SEGMENTS + 1)),
        insert(*[b"\xff\x01"] * (MAX_SEGMENTS + 1)),
        insert(*[segment(0xE1, b"Exif\0\0II*\0")] * (MAX_EXIF_SEGMENTS + 1)),
    ],
    ids=["application", "comment", "bare markers", "exif"],
)
def test_endless_segments_are_refused(data):
    with pytest.raises(ImageError, match=r"over .* JPEG segments"):
        read_image(data)


@pytest.mark.parametrize(
    "hiding",
    [
        b"\xff\xd9",
        b"\xff\xd8",
        segment(0xF0, b""),
        b"\xff\xe5\0\0",
        segment(0xFE, b"") + b"\0" * 70_000,
    ],
    ids=["end", "start", "extension", "no length", "junk"],
)
def test_nothing_hides_segments_from_the_count(hiding):
    many = [segment(0xE1, b"Exif\0\0II*\0")] * (MAX_EXIF_SEGMENTS + 1)
    with pytest.raises(ImageError, match="header makes no sense"):
        read_image(insert(hiding, *many))


def test_a_colour_profile_in_all_its_segments_is_read():
    profile = b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 255]) + b"x" * 9) for i in range(1, 256)
    )
    assert (read_image(insert(profile)) == np.asarray(Image.open(io.BytesIO(encode())))).all()


def test_other_files_are_left_alone():
    for data in (b"", b"\xff", b"\xff\xd8", b"GIF89a" + b"\xff\xda" * 1000):
        check_jpeg(io.BytesIO(data), "picture")


def test_a_picture_opened_by_the_caller_is_checked_as_well(tmp_path):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(add_scans(MAX_SCANS))
    with Image.open(path) as picture, pytest.raises(ImageError, match="scans"):
        open_image(picture)
    path.write_bytes(PROGRESSIVE)
    with Image.open(path) as picture:
        assert (np.asarray(open_image(picture)) == read_image(PROGRESSIVE)).all()


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_check_fail_otherwise(data):
    content = bytearray(add_scans(3))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[place] = data.draw(st.sampled_from([0, 0xFF, 0xDA, 0xD9, 0xE1, 7]))
    with contextlib.suppress(ImageError):
        check_jpeg(io.BytesIO(bytes(content)), "picture")
