"""Random and damaged files give a picture or an ImageError, and nothing else, in bounded time."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs.images import read_image

MAGIC = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"RIFF\0\0\0\0WEBP",
    b"II*\0",
    b"BM",
    b"P6 ",
)
CEILING = 1 << 20  # pixels: a damaged header must not make the test slow


def make_seeds():
    """A valid file of each format, small, with the parts that parsers get wrong."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    saves = {
        "PNG": (picture, {"exif": exif}),
        "PNG P": (picture.quantize(8), {"transparency": 1}),
        "PNG I;16": (Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32)), {}),
        "JPEG": (picture, {"exif": exif}),
        "JPEG CMYK": (picture.convert("CMYK"), {"progressive": True}),
        "GIF": (picture, {"save_all": True, "append_images": [picture.rotate(90)]}),
        "TIFF": (picture, {"compression": "tiff_lzw"}),
        "TIFF raw": (picture, {"exif": exif}),
        "WEBP": (picture, {"exif": exif}),
        "BMP": (picture.quantize(8), {}),
        "PPM": (picture, {}),
        "AVIF": (picture, {}),
        "JPEG2000": (picture, {}),
    }
    Image.init()
    seeds = {}
    for name, (image, options) in saves.items():
        kind = name.split()[0]
        if kind in Image.SAVE:
            file = io.BytesIO()
            image.save(file, kind, **options)
            seeds[name] = file.getvalue()
    return seeds


SEEDS = make_seeds()
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def assert_read_or_refused(data):
    for policy in ("vlmedge", "transformers"):
        refusal = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = read_image(data, policy=policy, max_source_pixels=CEILING)
            except ImageError as error:
                refusal, image = str(error), None
        if image is None:
            assert refusal
            assert "\n" not in refusal
        else:
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.size


@given(st.sampled_from(MAGIC), st.binary(max_size=300))
@FUZZ
def test_random_bytes_are_read_or_refused(magic, data):
    assert_read_or_refused(magic + data)


@pytest.mark.parametrize("name", SEEDS)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.floats(0, 1) | st.just(1.0),
    shift=st.integers(0, 3),
)
@FUZZ
def test_damaged_files_are_read_or_refused(name, changes, keep, shift):
    data = bytearray(SEEDS[name])
    for place, value in changes:
        # Cubed: most parsing, so most damage, is at the front.
        data[min(int(place**3 * len(data)), len(data) - 1)] = value
    middle = len(data) // 2
    data[middle : middle + shift] = b""
    assert_read_or_refused(bytes(data[: int(len(data) * keep) + 1]))


@pytest.mark.parametrize("name", SEEDS)
def test_a_file_cut_at_any_byte_is_read_or_refused(name):
    data = SEEDS[name]
    for length in range(0, len(data), max(1, len(data) // 60)):
        assert_read_or_refused(data[:length])
