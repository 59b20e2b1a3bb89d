"""Files, bytes, Pillow pictures and arrays -> upright RGB levels, by a stated policy.

| | "vlmedge" | "transformers" (5.23, its PIL image processor) |
|---|---|---|
| EXIF orientation | applied | of files applied, of Pillow pictures ignored |
| transparency | over white | of files dropped, of Pillow pictures over white |
| 16-bit gray | levels / 257 | clipped to 255: nearly all white |
| CMYK, palette, gray, 1 bit, YCbCr, ... | as Pillow's convert("RGB") | the same |
| several frames | the first | the first |
| colour profile | ignored | ignored |

Both refuse what is broken, truncated or too large to decode safely.
"""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ImageError
from .file_like import is_file_like, read_file_like

LoadPolicy = Literal["vlmedge", "transformers"]
MAX_SOURCE_PIXELS = (1 << 28) // 3  # 256 MiB of RGB; Pillow starts to warn at the same size

# Formats that decode in this process: Pillow would hand PostScript to Ghostscript, for one. HEIF is
# there when an add-on like pillow-heif brought it.
FORMATS = frozenset(
    {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
)
PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
ALPHA_MODES = frozenset({"LA", "PA", "RGBA", "La", "RGBa"})
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
EXIF_ORIENTATION = 0x0112
TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 258, 262, 0
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray,
    *,
    policy: LoadPolicy = "vlmedge",
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> NDArray[np.uint8]:
    """Read a picture as an array of upright RGB.

    Args:
        source: see `open_image`.
        policy: see the module's table.
        max_source_pixels: larger pictures are refused before they are decoded.

    Returns:
        uint8[H, W, 3]; may be read-only or `source` itself.

    Raises:
        ImageError, ValueError, TypeError: as `open_image` does.
    """
    return np.asarray(
        open_image(source, policy=policy, max_source_pixels=max_source_pixels), np.uint8
    )


def open_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray,
    *,
    policy: LoadPolicy = "vlmedge",
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> Image.Image | NDArray[np.uint8]:
    """Read a picture as upright RGB in the form it is resized from with the least copying.

    Args:
        source: a path, the bytes of a file, something with `read()` (read from where it is to its
            end, left open), a Pillow picture (left as it is, at its current frame) or an array:
            uint8 or uint16 of [H, W], [H, W, 1], [H, W, 3] or, with straight alpha, [H, W, 4];
            uint16 counts to 65535.
        policy: see the module's table.
        max_source_pixels: larger pictures are refused before they are decoded.

    Returns:
        A decoded Pillow picture of mode RGB, or of an array uint8[H, W, 3]; may be `source` itself.

    Raises:
        ImageError: no picture, a broken, truncated or too large one, or a mode without a rule.
        ValueError: an array of another dtype or shape, an unknown policy.
        TypeError: a source of another type.
    """
    if policy not in get_args(LoadPolicy):
        raise ValueError(
            f"load policy is {policy!r}, needed one of {', '.join(get_args(LoadPolicy))}"
        )
    if isinstance(source, np.ndarray):
        return _read_array(source, max_source_pixels)
    if isinstance(source, Image.Image):
        return _convert(source, "picture", policy, max_source_pixels, is_file=False)
    if is_file_like(source):
        source = read_file_like(source, "picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_file(io.BytesIO(source), "picture", policy, max_source_pixels)
    if isinstance(source, os.PathLike):
        source = os.fsdecode(source)
    if isinstance(source, str):
        if source.startswith(("http://", "https://")):
            raise ImageError(f"{source} is on the network: download it and give its path")
        return _read_file(Path(source), source, policy, max_source_pixels)
    raise TypeError(
        f"picture is a {type(source).__name__}, needed a path, bytes, a file opened for reading, a "
        "Pillow picture or an array"
    )


def _read_file(
    file: Path | io.BytesIO, name: str, policy: LoadPolicy, max_source_pixels: int
) -> Image.Image:
    try:
        image = Image.open(file, formats=_list_formats())
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is no picture of a known format: {_list_names()}") from error
    except OSError as error:
        raise ImageError(f"can't read {name}: {error.strerror or error}") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing runs into
        raise ImageError(f"{name} is a broken picture: {_say(error)}") from error
    with image:
        return _convert(image, name, policy, max_source_pixels, is_file=True)


def _convert(
    image: Image.Image, name: str, policy: LoadPolicy, max_source_pixels: int, *, is_file: bool
) -> Image.Image:
    _check_size(image.width, image.height, name, max_source_pixels)
    try:
        image.load()
        if policy == "vlmedge":
            return _turn_upright(_flatten(image, name), image)
        if is_file:
            return _turn_upright(image, image).convert("RGB")
        return _over_white(image) if _has_alpha(image) else _as_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # decoders, too, raise whatever their data makes them
        raise ImageError(f"{name} is a broken picture: {_say(error)}") from error


def _flatten(image: Image.Image, name: str) -> Image.Image:
    """Bring any mode to RGB, transparency over white."""
    if image.mode in DEEP_MODES:
        return _scale_deep(image, name)
    if image.mode not in PLAIN_MODES | ALPHA_MODES:
        raise ImageError(
            f"{name} has the pixel mode {image.mode}, which has no agreed way to RGB: "
            "convert it to 8-bit RGB"
        )
    return _over_white(image) if _has_alpha(image) else _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ALPHA_MODES or image.info.get("transparency") is not None


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow knows no way from it to RGBA
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _scale_deep(image: Image.Image, name: str) -> Image.Image:
    """Gray of more than 8 bits: Pillow's own conversion would clip it at 255."""
    levels = np.asarray(image)
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name} has gray levels of {low} to {high}, needed 0 to 65535: scale it to 8 bits"
        )
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS_PER_SAMPLE, (16,))[0]
    full = 4095 if bits == 12 else 65535
    gray = ((levels.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[levels == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _turn_upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Apply the orientation of `source`; EXIF that can't be read says nothing."""
    try:
        orientation = source.getexif().get(EXIF_ORIENTATION)
    except Exception:  # a picture with broken metadata is still a picture
        return image
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _read_array(array: NDArray, max_source_pixels: int) -> NDArray[np.uint8]:
    what = f"array is {array.dtype}{list(array.shape)}"
    if array.dtype.kind == "f":
        raise ValueError(
            f"{what}, needed uint8 levels: levels of 0 to 1 go through (array * 255).round().astype"
            "('uint8'); normalized ones can't be taken, give the picture before that"
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{what}, needed uint8, or uint16 that counts to 65535")
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise ValueError(f"{what}, needed channels last: array.transpose(1, 2, 0)")
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        raise ValueError(f"{what}, needed [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]")
    if not array.size:
        raise ValueError(f"{what}, needed at least one pixel")
    _check_size(shape[1], shape[0], "array", max_source_pixels)
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4:
        return np.asarray(_over_white(Image.fromarray(np.ascontiguousarray(array))))
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def _check_size(width: int, height: int, name: str, max_source_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}: it has no pixels")
    if width * height > max_source_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, over the {max_source_pixels} pixels that are decoded at "
            "most: scale it down, or raise max_source_pixels if you trust it"
        )


@functools.cache
def _list_formats() -> tuple[str, ...]:
    """What of `FORMATS` this Pillow can read; it stumbles over names it doesn't know."""
    Image.init()
    return tuple(sorted(FORMATS & Image.OPEN.keys()))


def _list_names() -> str:
    return ", ".join(_list_formats())


def _say(error: Exception) -> str:
    return f"{error}" or type(error).__name__
