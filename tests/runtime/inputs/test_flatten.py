"""Bands of rows against whole pictures, bit by bit, and the memory that reading a picture takes."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.runtime.inputs import flatten
from vlmedge.runtime.inputs.images import open_image, read_image

FULL_HEIGHT, FULL_WIDTH = 3000, 4000  # of the pictures whose memory is measured
COPY_BYTES = 4 * FULL_HEIGHT * FULL_WIDTH  # Pillow keeps RGB, RGBA and LA in four bytes a pixel
SLACK_BYTES = 40 << 20  # bands, the file and the allocator


def whole_over_white(image):
    """Pillow's own blending, of the picture at once: what bands must equal."""
    if image.mode == "La":
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))


def make_picture(mode, height, width, seed):
    rng = np.random.default_rng(seed)
    rgba = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    if mode == "P":
        image = rgba.convert("RGB").quantize(16)
        image.info["transparency"] = bytes(rng.integers(0, 256, 16, dtype=np.uint8))
        return image
    if mode in ("L", "RGB", "1"):
        image = rgba.convert("RGB").convert(mode)
        image.info["transparency"] = (
            image.getpixel((0, 0)) if mode == "RGB" else int(image.getpixel((0, 0)))
        )
        return image
    if mode == "PA":
        image = rgba.convert("RGB").quantize(16).convert("PA")
        image.putalpha(rgba.getchannel("A"))
        return image
    if mode == "La":
        return rgba.convert("LA").convert("La")
    return rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA", "P", "L", "RGB", "1"])
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    band_pixels=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_bands_over_white_equal_the_whole_picture(mode, height, width, band_pixels, seed):
    image = make_picture(mode, height, width, seed)
    before = image.tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatten, "BAND_PIXELS", band_pixels)
        made = flatten.flatten(image, "picture")
        assert made.mode == "RGB"
        assert (np.asarray(made) == whole_over_white(image)).all()
        if mode == "RGBA":
            assert (flatten.flatten_array(np.asarray(image)) == whole_over_white(image)).all()
    assert image.tobytes() == before


@given(
    levels=st.integers(0, 65535),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    band_pixels=st.integers(1, 300),
)
@settings(max_examples=40, deadline=None)
def test_bands_of_deep_gray_equal_the_rounded_quotient(levels, height, width, band_pixels):
    rng = np.random.default_rng(levels)
    deep = rng.integers(0, levels + 1, (height, width), dtype=np.uint16)
    needed = np.floor(deep / 257 + 0.5).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatten, "BAND_PIXELS", band_pixels)
        made = np.asarray(flatten.flatten(Image.fromarray(deep), "picture"))
        assert (flatten.round_deep_array(deep) == needed).all()
    assert (made == needed[:, :, None]).all()


def test_a_deep_level_out_of_range_is_refused_wherever_it_stands():
    deep = np.zeros((40, 40), np.int32)
    deep[39, 39] = 65536
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatten, "BAND_PIXELS", 40)
        with pytest.raises(ValueError, match="0 to 65536"):
            flatten.flatten(Image.fromarray(deep), "picture")


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "GIF", "PNG"])
def test_the_decoder_is_gone_and_the_callers_own_picture_is_not(kind, tmp_path):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / "picture"
    frames = [Image.new("RGB", (32, 24), color) for color in ("red", "blue")]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    opened = open_image(path)
    assert not hasattr(opened, "_decoder")
    opened.resize((8, 8))  # the pixels are there
    with Image.open(path) as own:
        read_image(own)
        own.seek(1)
        assert np.asarray(own.convert("RGB"))[0, 0, 2] > 200


# What decoding itself takes, in pictures of four bytes a pixel, and what the flat picture adds:
# the reader may never hold more than both.
CASES = {
    "PNG RGB": ("RGB", "PNG", {}, 1),
    "PNG RGBA": ("RGBA", "PNG", {}, 2),
    "PNG LA": ("LA", "PNG", {}, 2),
    "PNG P, transparent": ("P", "PNG", {"transparency": 1}, 1.25),
    "PNG L, transparent": ("L", "PNG", {"transparency": 1}, 1.25),
    "PNG 1": ("1", "PNG", {}, 1.25),
    "PNG I;16": ("I;16", "PNG", {}, 1.5),
    "PNG RGBA, turned": ("RGBA", "PNG", {"exif": 6}, 2),
    "APNG": ("RGBA", "PNG", {"save_all": True}, 2),
    "GIF": ("P", "GIF", {"save_all": True}, 1.25),
    "JPEG": ("RGB", "JPEG", {}, 1),
    "JPEG CMYK": ("CMYK", "JPEG", {}, 2),
    "TIFF RGBA": ("RGBA", "TIFF", {"compression": "tiff_adobe_deflate"}, 2),
    # libwebp keeps two canvases, Pillow the decoded bytes and the picture
    "WebP RGBA": ("RGBA", "WEBP", {"lossless": True, "method": 0}, 4),
    "WebP, animated": ("RGBA", "WEBP", {"lossless": True, "method": 0, "save_all": True}, 4),
}
MEASURE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from vlmedge.runtime.inputs.bicubic import resize_bicubic
from vlmedge.runtime.inputs.images import open_image

def read_peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

Image.init()
resize_bicubic(np.zeros((600, 600, 3), np.uint8), 300, 300)
before = read_peak()
resize_bicubic(open_image(sys.argv[1]), 728, 952)
print(read_peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", CASES)
def test_reading_and_resizing_hold_the_decoded_picture_and_one_copy(name, tmp_path):
    mode, kind, options, copies = CASES[name]
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    size = (FULL_WIDTH, FULL_HEIGHT)
    if mode == "I;16":
        image = Image.fromarray(np.full(size[::-1], 4000, np.uint16))
    elif mode == "P":
        image = Image.new("RGB", size, (90, 30, 200)).quantize(4)
    else:
        image = Image.new("RGBA", size, (90, 30, 200, 128)).convert(mode)
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options = {"exif": exif}
    if options.get("save_all"):
        options = options | {"append_images": [Image.new(mode, size, 3)]}
    path = tmp_path / "picture"
    image.save(path, kind, **options)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) <= copies * COPY_BYTES + SLACK_BYTES


def test_arrays_with_alpha_take_no_copy_but_the_result():
    array = np.full((FULL_HEIGHT, FULL_WIDTH, 4), 128, np.uint8)
    tracemalloc.start()
    try:
        made = read_image(array)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.nbytes == 3 * FULL_HEIGHT * FULL_WIDTH
    assert peak <= made.nbytes + SLACK_BYTES
