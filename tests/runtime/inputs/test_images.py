"""The load policies, each mode and format against a picture whose upright RGB is known."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs.images import (
    FORMATS,
    MAX_SOURCE_PIXELS,
    _list_formats,
    open_image,
    read_image,
)

LOSSY_LEVELS = 12  # JPEG and WebP at quality 95 on smooth pictures stay well within


def make_smooth(height=40, width=60):
    """uint8[H, W, 3], no symmetry, smooth enough for lossy formats."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], axis=2).astype(np.uint8)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def over_white(rgb, alpha):
    alpha = alpha.astype(float)[..., None] / 255
    return rgb * alpha + 255 * (1 - alpha)


def assert_close(made, expected, levels=0):
    assert made.dtype == np.uint8
    assert made.shape == expected.shape
    assert np.abs(made.astype(float) - expected).max() <= levels


SMOOTH = make_smooth()
RAMP_16 = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
RAMP_8 = np.repeat(np.round(RAMP_16 / 257)[:, :, None], 3, axis=2)
ALPHA = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
RGBA = np.dstack([SMOOTH, ALPHA])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_are_read_exactly(kind):
    assert_close(read_image(encode(Image.fromarray(SMOOTH), kind)), SMOOTH)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_are_read_closely(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    assert_close(read_image(encode(Image.fromarray(SMOOTH), kind)), SMOOTH, 40)


def test_paths_bytes_pictures_and_arrays_give_the_same(tmp_path):
    data = encode(Image.fromarray(SMOOTH), "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), Image.fromarray(SMOOTH), SMOOTH):
        assert_close(read_image(source), SMOOTH)


def test_what_is_opened_is_the_same_with_less_copying():
    picture = Image.fromarray(SMOOTH)
    assert open_image(picture) is picture
    assert open_image(SMOOTH) is SMOOTH
    opened = open_image(encode(picture, "PNG"))
    assert opened.mode == "RGB"
    assert_close(np.asarray(opened), SMOOTH)


TURNS = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],  # stored turned left, to be turned right
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("kind", "levels"), [("PNG", 0), ("TIFF", 0), ("JPEG", LOSSY_LEVELS)])
def test_pictures_stand_upright_as_exif_says(orientation, kind, levels):
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](SMOOTH)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encode(stored, kind, exif=exif, **options)
    assert_close(read_image(data), SMOOTH, levels)
    opened = Image.open(io.BytesIO(data))
    assert_close(read_image(opened), SMOOTH, levels)
    assert_close(read_image(data, policy="transformers"), SMOOTH, levels)
    if kind != "TIFF":  # Pillow itself turns those while it decodes
        expected = np.asarray(Image.open(io.BytesIO(data)))
        assert_close(read_image(opened, policy="transformers"), expected)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0"]
)
def test_exif_that_can_not_be_read_leaves_the_picture_as_stored(exif):
    data = encode(Image.fromarray(SMOOTH), "JPEG", exif=exif, quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(data).shape == SMOOTH.shape


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_close(read_image(encode(Image.fromarray(SMOOTH), "PNG", exif=exif)), SMOOTH)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_lies_over_white(kind):
    data = encode(Image.fromarray(RGBA), kind)
    assert_close(read_image(data), over_white(SMOOTH, ALPHA), 1)
    assert (read_image(data)[:, 0] == 255).all()


def test_transparency_of_gray_and_palette_lies_over_white():
    gray_alpha = Image.fromarray(RGBA).convert("LA")
    gray = np.repeat(np.asarray(gray_alpha)[..., :1], 3, axis=2)
    assert_close(read_image(encode(gray_alpha, "PNG")), over_white(gray, ALPHA), 1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    expected = np.array([[[255, 255, 255], [40, 50, 60]]])
    assert_close(read_image(encode(palette, "PNG", transparency=0)), expected)
    assert_close(read_image(encode(palette, "GIF", transparency=0)), expected)
    half = over_white(np.array([[[10, 20, 30]]]), np.array([[128]]))
    made = read_image(encode(palette, "PNG", transparency=bytes([128, 255])))
    assert_close(made[:, :1], half, 1)
    assert_close(read_image(palette.convert("PA")), np.array([[[10, 20, 30], [40, 50, 60]]]))


def test_a_transparent_colour_lies_over_white():
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (200, 100, 50))
    data = encode(picture, "PNG", transparency=(1, 2, 3))
    assert_close(read_image(data), np.array([[[255, 255, 255], [200, 100, 50]]]))
    gray = encode(Image.new("L", (1, 1), 7), "PNG", transparency=7)
    assert_close(read_image(gray), np.array([[[255, 255, 255]]]))
    deep = Image.fromarray(np.array([[700, 70]], np.uint16))
    deep.info["transparency"] = 700
    assert_close(read_image(deep), np.array([[[255] * 3, [0] * 3]]))


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_pictures_lie_over_white(mode):
    straight = Image.fromarray(RGBA).convert("LA" if mode == "La" else "RGBA")
    colours = np.asarray(straight.convert("RGBA"))[..., :3]
    made = read_image(straight.convert(mode))
    seen = ALPHA > 64  # below, premultiplied colours have hardly any levels left
    assert_close(made[seen], over_white(colours, ALPHA)[seen], 4)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(kind):
    if kind == "PPM":  # older Pillows read it but don't write it
        data = b"P5 32 24 65535\n" + RAMP_16.astype(">u2").tobytes()
    else:
        data = encode(Image.fromarray(RAMP_16), kind)
    assert_close(read_image(data), RAMP_8)
    assert read_image(data, policy="transformers").mean() > 250, "what the other policy is about"


def test_16_bit_gray_of_every_mode_is_scaled():
    assert_close(read_image(Image.fromarray(RAMP_16.astype(np.int32))), RAMP_8)
    big_endian = Image.frombytes("I;16B", (32, 24), RAMP_16.astype(">u2").tobytes())
    assert_close(read_image(big_endian), RAMP_8)


def make_gray_tiff(levels, bits, photometric):
    """A TIFF of one strip, gray, big-endian; 12 bits are packed in threes of nibbles."""
    height, width = levels.shape
    if bits == 12:
        pairs = levels.reshape(-1, 2).astype(int)
        data = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs)
    else:
        data = levels.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    tags |= {273: 8 + 2 + 12 * 9 + 4, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_tiff_gray_of_12_bits_or_counted_from_white_is_scaled():
    assert_close(read_image(make_gray_tiff(RAMP_16, 16, 1)), RAMP_8)
    assert_close(read_image(make_gray_tiff(RAMP_16, 16, 0)), 255 - RAMP_8)
    assert_close(read_image(make_gray_tiff(RAMP_16 >> 4, 12, 1)), RAMP_8, 1)


@pytest.mark.parametrize("levels", [[[-1, 5]], [[70000, 5]]])
def test_32_bit_gray_beyond_16_bits_is_refused(levels):
    with pytest.raises(ImageError, match="needed 0 to 65535"):
        read_image(Image.fromarray(np.array(levels, np.int32)))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_an_agreed_way_to_rgb_are_refused(mode):
    with pytest.raises(ImageError, match=f"pixel mode {mode}"):
        read_image(Image.new(mode, (3, 3)))


def test_cmyk_is_read_in_both_polarities():
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    adobe = encode(cmyk, "JPEG", quality=95, subsampling=0)  # Pillow writes Adobe's inverted levels
    assert b"Adobe" in adobe
    assert_close(read_image(adobe), SMOOTH, LOSSY_LEVELS)
    assert_close(read_image(encode(cmyk, "TIFF")), SMOOTH, 1)
    assert_close(read_image(cmyk), SMOOTH, 1)


@pytest.mark.parametrize(("mode", "levels"), [("YCbCr", 3), ("HSV", 8)])
def test_other_colour_spaces_are_converted(mode, levels):
    assert_close(read_image(Image.fromarray(SMOOTH).convert(mode)), SMOOTH, levels)


def test_gray_palette_and_one_bit_pictures_become_rgb():
    gray = Image.fromarray(SMOOTH).convert("L")
    expected = np.repeat(np.asarray(gray)[..., None], 3, axis=2)
    assert_close(read_image(encode(gray, "PNG")), expected)
    palette = Image.fromarray(SMOOTH).quantize(16)
    assert_close(read_image(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bits = gray.point(lambda level: 255 * (level > 90)).convert("1")
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        assert_close(
            read_image(encode(bits, kind)), 255 * np.repeat(np.asarray(bits)[..., None], 3, 2)
        )


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_close(read_image(data), np.full((8, 8, 3), (255, 0, 0)))


def test_a_pillow_picture_is_taken_at_its_frame_and_left_as_it_is():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    opened = Image.open(
        io.BytesIO(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    )
    opened.seek(1)
    assert_close(read_image(opened), np.full((8, 8, 3), (0, 255, 0)))
    assert opened.tell() == 1
    opened.seek(0)
    assert_close(read_image(opened), np.full((8, 8, 3), (255, 0, 0)))


DETAILED = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7])
@pytest.mark.parametrize("policy", ["vlmedge", "transformers"])
def test_a_truncated_file_is_an_error(kind, share, policy):
    data = encode(Image.fromarray(DETAILED), kind)
    with pytest.raises(ImageError):
        read_image(data[: int(len(data) * share)], policy=policy)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", bytes(1000), b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
)
def test_bytes_that_are_no_picture_are_an_error(data):
    with pytest.raises(ImageError, match=r"no picture of a known format: .*JPEG"):
        read_image(data)


def test_postscript_is_never_given_to_ghostscript():
    picture = Image.fromarray(SMOOTH)
    with pytest.raises(ImageError, match="known format"):
        read_image(encode(picture, "EPS"))
    assert "EPS" not in FORMATS | set(_list_formats())


def test_a_path_that_can_not_be_read_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ImageError, match=r"can't read .*nothing.png: No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="can't read"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="on the network"):
        read_image("https://example.com/a.png")


def make_png_header(width, height):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10000, 9000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("policy", ["vlmedge", "transformers"])
@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_a_decompression_bomb_is_refused_by_its_header(size, policy, pillow_limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    monkeypatch.setattr(
        PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded a bomb")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match=r"over the limit of 89478485 pixels|bomb"):
            read_image(make_png_header(*size), policy=policy)


def test_the_ceiling_of_pixels_is_the_callers_to_move():
    data = encode(Image.fromarray(SMOOTH), "PNG")
    assert_close(read_image(data, max_source_pixels=2400), SMOOTH)
    for source in (data, Image.fromarray(SMOOTH), SMOOTH):
        with pytest.raises(ImageError, match="60x40, over the limit of 2399 pixels"):
            read_image(source, max_source_pixels=2399)
    assert MAX_SOURCE_PIXELS == 89478485


def test_settings_of_pillow_are_left_alone():
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    read_image(encode(Image.fromarray(SMOOTH), "PNG"))
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_arrays_of_levels_are_taken():
    gray = SMOOTH[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=2)
    assert read_image(SMOOTH) is SMOOTH
    assert_close(read_image(gray), expected)
    assert_close(read_image(gray[..., None]), expected)
    assert_close(read_image(RGBA), over_white(SMOOTH, ALPHA), 1)
    assert_close(read_image(RGBA[::2, ::3]), over_white(SMOOTH, ALPHA)[::2, ::3], 1)
    assert_close(read_image(RAMP_16), RAMP_8)
    assert_close(read_image(np.dstack([RAMP_16] * 3)), RAMP_8)
    flipped = read_image(SMOOTH[:, ::-1])
    assert flipped.flags.c_contiguous
    assert_close(flipped, SMOOTH[:, ::-1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32\[4, 4, 3\].*\* 255"),
        (np.zeros((4, 4, 3), np.float64), "needed uint8 levels"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4, 3), object), "object"),
        (np.zeros((3, 40, 50), np.uint8), r"channels last: array.transpose\(1, 2, 0\)"),
        (np.zeros((40, 50, 2), np.uint8), r"needed \[H, W\]"),
        (np.zeros(40, np.uint8), r"needed \[H, W\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"needed \[H, W\]"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
    ],
)
def test_other_arrays_are_refused_with_what_to_do(array, message):
    with pytest.raises(ValueError, match=message):
        read_image(array)


@pytest.mark.parametrize("source", [None, 3, ["a.png"]])
def test_other_sources_are_refused(source):
    with pytest.raises(TypeError, match="needed a path, bytes"):
        read_image(source)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="load policy is 'torch'"):
        read_image(SMOOTH, policy="torch")


def make_modes():
    picture = Image.fromarray(RGBA)
    draw = ImageDraw.Draw(picture)
    draw.text((3, 3), "12.50", fill=(0, 0, 0, 200))
    modes = {mode: picture.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")}
    modes["I;16"] = Image.fromarray(RAMP_16)
    modes["P with transparency"] = Image.open(io.BytesIO(encode(modes["P"], "PNG", transparency=3)))
    return modes


@pytest.mark.parametrize("mode", make_modes())
def test_the_policy_transformers_does_as_transformers(mode):
    transforms = pytest.importorskip("transformers.image_transforms")
    image_utils = pytest.importorskip("transformers.image_utils")
    picture = make_modes()[mode]
    try:
        expected = transforms.convert_to_rgb(picture, return_numpy=True)
    except TypeError:
        pytest.skip("transformers before 5.23 converts pictures in another way")
    assert_close(read_image(picture, policy="transformers"), expected)
    if mode not in ("CMYK",):
        data = encode(picture, "PNG")
        expected = np.asarray(image_utils.load_image(Image.open(io.BytesIO(data))))
        assert_close(read_image(data, policy="transformers"), expected)
