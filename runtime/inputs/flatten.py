"""Bring a picture of any pixel mode to RGB, with transparency over white, a band of rows at a time.

Pillow's own way to RGB goes through four pictures of full size: RGBA, white, the two blended, and
their RGB. No pixel depends on another, so the same calls on bands of rows give the same bits, and
only the picture itself and the RGB made of it exist in full size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError

BAND_PIXELS = 1 << 20  # in one band; its intermediate pictures take about 20 MB
PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
ALPHA_MODES = frozenset({"LA", "PA", "RGBA", "La", "RGBa"})
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 258, 262, 0


def flatten(image: Image.Image, name: str) -> Image.Image:
    """Bring a picture to RGB by the policy "vlmedge" (see `images`).

    Args:
        image: a decoded picture, which is left as it is.
        name: how errors call the picture.

    Returns:
        A picture of mode RGB; `image` itself if it is one.

    Raises:
        ImageError: the mode has no rule, or gray levels are out of range.
    """
    if image.mode in DEEP_MODES:
        return _scale_deep(image, name)
    if image.mode not in PLAIN_MODES | ALPHA_MODES:
        raise ImageError(
            f"{name} has the pixel mode {image.mode}, which has no agreed way to RGB: "
            "convert it to 8-bit RGB"
        )
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion to RGB, over white where there is transparency."""
    if image.mode in ALPHA_MODES or image.info.get("transparency") is not None:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def flatten_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay levels with straight alpha over white: uint8[H, W, 4] -> uint8[H, W, 3]."""
    height, width = array.shape[:2]
    rgb = np.empty((height, width, 3), np.uint8)
    for top, bottom in cut_bands(height, width):
        band = Image.fromarray(np.ascontiguousarray(array[top:bottom]))
        rgb[top:bottom] = np.asarray(_blend(band))
    return rgb


def round_deep_array(array: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Round levels that count to 65535 to levels that count to 255.

    uint16[H, W, ...] -> uint8[H, W, ...].
    """
    levels = np.empty(array.shape, np.uint8)
    for top, bottom in cut_bands(*array.shape[:2]):
        levels[top:bottom] = (array[top:bottom].astype(np.uint32) + 128) // 257
    return levels


def cut_bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row of each band and the row after its last, from the top down."""
    num_rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, num_rows):
        yield top, min(top + num_rows, height)


def _over_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top, bottom in cut_bands(image.height, image.width):
        rgb.paste(_blend(image.crop((0, top, image.width, bottom))), (0, top))
    return rgb


def _blend(band: Image.Image) -> Image.Image:
    """A band over white; `info` and palette, which may hold transparency, come with a crop."""
    if band.mode == "La":  # Pillow can't convert it to RGBA directly
        band = band.convert("LA")
    rgba = band.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _scale_deep(image: Image.Image, name: str) -> Image.Image:
    """Scale gray of more than 8 bits; Pillow's own conversion would clip it at 255."""
    bands = list(cut_bands(image.height, image.width))

    def read(band: tuple[int, int]) -> NDArray:
        return np.asarray(image.crop((0, band[0], image.width, band[1])))

    ranges = [(int(levels.min()), int(levels.max())) for levels in map(read, bands)]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name} has gray levels of {low} to {high}, needed 0 to 65535: scale it to 8 bits"
        )
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS_PER_SAMPLE, (16,))[0]
    full = 4095 if bits == 12 else 65535
    counts_from_white = tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO
    transparent = image.info.get("transparency")
    rgb = Image.new("RGB", image.size)
    for band in bands:
        levels = read(band)
        gray = ((levels.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)
        if counts_from_white:
            gray = 255 - gray
        if isinstance(transparent, int):
            gray[levels == transparent] = 255
        rgb.paste(Image.fromarray(gray).convert("RGB"), (0, band[0]))
    return rgb
