"""Read files, bytes, Pillow pictures and arrays as upright RGB levels, by a stated policy.

| | "vlmedge" | "transformers" (5.23, its PIL image processor) |
|---|---|---|
| EXIF orientation | applied | of files applied, of Pillow pictures ignored |
| transparency | over white | of files dropped, of Pillow pictures over white |
| 16-bit gray | levels / 257 | clipped to 255: nearly all white |
| CMYK, palette, gray, 1 bit, YCbCr, ... | as Pillow's convert("RGB") | the same |
| several frames | the first | the first |
| colour profile | ignored | ignored |

Both refuse pictures that are broken, truncated or too large to decode safely.
"""

from __future__ import annotations

import functools
import io
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from ..files.regular_file import check_regular, open_regular
from .file_like import is_file_like, read_file_like
from .flatten import flatten, flatten_array, round_deep_array, to_rgb
from .formats.jpeg2000_parts import check_jpeg2000
from .formats.jpeg_scans import check_jpeg
from .formats.ppm_text import check_ppm
from .formats.tiff_parts import check_tiff

LoadPolicy = Literal["vlmedge", "transformers"]
MAX_SOURCE_PIXELS = (1 << 28) // 3  # 256 MiB of RGB; Pillow starts to warn at the same size

# Formats that are decoded in this process; Pillow would hand PostScript, for one, to Ghostscript.
# HEIF is only there with an add-on like pillow-heif.
FORMATS = frozenset(
    {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
)
EXIF_ORIENTATION = 0x0112
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
        source: as of `open_image`; of arrays uint8[H, W, 3] and its kin.
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
            uint8[H, W], uint8[H, W, 1], uint8[H, W, 3] or, with straight alpha, uint8[H, W, 4];
            or uint16 of these shapes, which counts to 65535.
        policy: see the module's table.
        max_source_pixels: larger pictures are refused before they are decoded.

    Returns:
        A decoded Pillow picture of mode RGB, or uint8[H, W, 3] if `source` is an array; may be
        `source` itself.

    Raises:
        ImageError: the source is not a picture, is broken, truncated or too large, or has a mode
            without an agreed way to RGB.
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
    image, name = _open_source(source)
    return _convert(image, name, policy, max_source_pixels, is_file=True)


def read_size(
    source: str | Path | bytes | Image.Image | NDArray,
    *,
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> tuple[int, int]:
    """Height and width as a picture's header has them, before it is turned upright.

    Nothing is decoded. Raises what `open_image` would raise up to there.

    Args:
        source: as of `open_image`; of arrays uint8[H, W, 3] and its kin.
        max_source_pixels: larger pictures are refused.
    """
    if isinstance(source, np.ndarray):
        _check_array(source, max_source_pixels)
        return source.shape[0], source.shape[1]
    if isinstance(source, Image.Image):
        _check_size(source.width, source.height, "picture", max_source_pixels)
        return source.height, source.width
    image, name = _open_source(source)
    with image:
        _check_size(image.width, image.height, name, max_source_pixels)
        return image.height, image.width


def _open_source(source: Any) -> tuple[Image.Image, str]:
    if is_file_like(source):
        source = read_file_like(source, "picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_file(io.BytesIO(source), "picture"), "picture"
    if isinstance(source, os.PathLike):
        source = os.fsdecode(source)
    if isinstance(source, str):
        if source.startswith(("http://", "https://")):
            raise ImageError(f"{source} is on the network: download it and give its path")
        try:
            check_regular(source)
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            reason = error.strerror if isinstance(error, OSError) else error
            raise ImageError(f"can't read {source}: {reason}") from error
        return _open_file(Path(source), source), source
    raise TypeError(
        f"picture is a {type(source).__name__}, needed a path, bytes, a file opened for reading, a "
        "Pillow picture or an array"
    )


def _open_file(file: Path | io.BytesIO, name: str) -> Image.Image:
    """Open a picture and read its header, not its pixels."""
    try:
        _check_markers(file, name)
        image = Image.open(file, formats=_list_formats())
        if image.format == "JPEG2000":
            _check_opened(image, name)
        return image
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is no picture of a known format: {_list_names()}") from error
    except OSError as error:
        raise ImageError(f"can't read {name}: {error.strerror or error}") from error
    except Exception as error:  # Pillow's plugins raise exceptions of any kind
        raise ImageError(f"{name} is a broken picture: {_say(error)}") from error


def _check_markers(file: Path | io.BytesIO, name: str) -> None:
    if isinstance(file, Path):
        with open_regular(file) as stream:
            _check_stream(stream, name)
    else:
        _check_stream(file, name)


def _check_stream(file: BinaryIO, name: str) -> None:
    for check in (check_jpeg, check_tiff, check_ppm):
        check(file, name)
        file.seek(0)


def _check_opened(image: Image.Image, name: str) -> None:
    """Check the markers of a picture that somebody opened and that is not yet decoded."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None):
        return
    if image.format not in ("JPEG", "MPO", "TIFF", "PPM", "JPEG2000"):
        return
    place = file.tell()
    file.seek(0)
    if image.format == "JPEG2000":
        check_jpeg2000(file, name, image.size)
    else:
        _check_stream(file, name)
    file.seek(place)


def _convert(
    image: Image.Image, name: str, policy: LoadPolicy, max_source_pixels: int, *, is_file: bool
) -> Image.Image:
    try:
        with image if is_file else nullcontext():
            _check_size(image.width, image.height, name, max_source_pixels)
            if not is_file:
                _check_opened(image, name)
            image.load()
            turn = _read_turn(image)
        if is_file:
            # The decoders of WebP and AVIF would keep two or three more copies of the pixels.
            vars(image).pop("_decoder", None)
        elif policy == "transformers":
            return to_rgb(image)
        rgb = flatten(image, name) if policy == "vlmedge" else image.convert("RGB")
        if is_file and rgb is not image:
            image.close()  # frees its pixels before the copy is rotated
        return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except Exception as error:  # decoders, too, raise exceptions of any kind
        raise ImageError(f"{name} is a broken picture: {_say(error)}") from error


def _read_turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that brings a picture upright; EXIF that can't be read asks for none."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # a picture with broken metadata is still a picture
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _check_array(array: NDArray, max_source_pixels: int) -> None:
    what = f"array is {array.dtype}{list(array.shape)}"
    if array.dtype.kind == "f":
        raise ValueError(
            f"{what}, needed uint8 levels: convert levels of 0 to 1 by (array * 255).round().astype"
            "('uint8'); of a normalized picture give the levels from before it was normalized"
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


def _read_array(array: NDArray, max_source_pixels: int) -> NDArray[np.uint8]:
    _check_array(array, max_source_pixels)
    if array.dtype == np.uint16:
        array = round_deep_array(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4:
        return flatten_array(array)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def _check_size(width: int, height: int, name: str, max_source_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}: it has no pixels")
    if width * height > max_source_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, over the limit of {max_source_pixels} pixels: "
            "scale it down, or raise max_source_pixels if you trust it"
        )


@functools.cache
def _list_formats() -> tuple[str, ...]:
    """The formats that this Pillow can read; `Image.open` fails on names it doesn't know."""
    Image.init()
    return tuple(sorted(FORMATS & Image.OPEN.keys()))


def _list_names() -> str:
    return ", ".join(_list_formats())


def _say(error: Exception) -> str:
    return f"{error}" or type(error).__name__
