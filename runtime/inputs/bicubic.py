"""Pillow's bicubic resize on all cores, equal to Pillow's own in every bit.

Pillow resizes in two passes, one along the rows, one along the columns, and rounds to 8 bits in
between. Within a pass each row (each column) depends only on itself. So bands of rows and strips of
columns go to different threads, pass by pass, through the same code of Pillow that would handle the
whole picture; it releases the interpreter lock meanwhile. Two shorter ways are not exact. Cutting
the output with `resize(box=...)` is not, because Pillow takes the box in single precision. A fixed
order of passes is not, because since Pillow 13 the order depends on the sizes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle.manifest import Resample
from ..threads import count_cpus

MIN_THREADED_PIXELS = 1 << 18  # for fewer, starting threads costs more than they save
# A thread cuts this much out of the old picture at a time; larger crops would add up to a copy.
CROP_PIXELS = 1 << 22

RgbImage = Image.Image | NDArray[np.uint8]  # mode RGB, or uint8[H, W, 3]
# Takes a piece of the new picture, uint8[n, m, 3], and the row and column of its first pixel.
WritePiece = Callable[[NDArray[np.uint8], int, int], None]


class Sizes(NamedTuple):
    """A picture's old and new height and width in pixels."""

    old_height: int
    old_width: int
    height: int
    width: int


PassOrder = Callable[[Sizes], bool]  # does the pass along the rows, to the new width, come first?


def resize_bicubic(
    image: RgbImage, height: int, width: int, *, num_threads: int | None = None
) -> NDArray[np.uint8]:
    """Resize a picture.

    Args:
        image: a Pillow picture of mode RGB, or uint8[h, w, 3].
        height: new height in pixels.
        width: new width in pixels.
        num_threads: number of threads; None: one per core.

    Returns:
        uint8[height, width, 3].
    """
    resized = np.empty((height, width, 3), np.uint8)

    def write(piece: NDArray[np.uint8], top: int, left: int) -> None:
        resized[top : top + piece.shape[0], left : left + piece.shape[1]] = piece

    resize_in_pieces(image, height, width, write, num_threads=num_threads)
    return resized


def resize_in_pieces(
    image: RgbImage,
    height: int,
    width: int,
    write: WritePiece,
    *,
    step: int = 1,
    num_threads: int | None = None,
    resample: Resample = "bicubic",
) -> None:
    """Resize a picture and hand over each piece of the new one as it is ready.

    Args:
        image: a Pillow picture of mode RGB, or uint8[h, w, 3].
        height: new height in pixels.
        width: new width in pixels.
        write: takes a piece; called from several threads, once per piece.
        step: pieces start at multiples of this number of pixels.
        num_threads: number of threads; None: one per core.
        resample: Pillow's filter; for others than bicubic pictures are resized whole, on one core.
    """
    sizes = Sizes(*get_size(image), height, width)
    if sizes[:2] == sizes[2:]:
        write(np.asarray(image), 0, 0)
        return
    num_threads = num_threads or count_cpus()
    order = find_pass_order() if num_threads > 1 else None
    largest = max(sizes.height * sizes.width, sizes.old_height * sizes.old_width)
    if order is None or largest < MIN_THREADED_PIXELS or resample != "bicubic":
        whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
        chosen = Image.Resampling[resample.upper()]
        write(np.asarray(whole.resize((width, height), chosen)), 0, 0)
        return
    with ThreadPoolExecutor(num_threads - 1) as pool:
        share_out = functools.partial(_share_out, pool, num_threads)
        resize = _resize_rows_first if order(sizes) else _resize_columns_first
        resize(image, sizes, write, step, num_threads, share_out)


def get_size(image: RgbImage) -> tuple[int, int]:
    """Height and width in pixels.

    Args:
        image: a Pillow picture, or uint8[H, W, 3].
    """
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def rows_always_first(sizes: Sizes) -> bool:
    """The order of Pillow up to 12."""
    return True


def rows_first_unless_much_lower(sizes: Sizes) -> bool:
    """The order of Pillow 13, whose libImaging/Resample.c compares pixels, not ratios."""
    lost_height = sizes.old_height - sizes.height
    return not (lost_height > 0 and lost_height > 2 * (sizes.old_width - sizes.width))


PASS_ORDERS: tuple[PassOrder, ...] = (rows_first_unless_much_lower, rows_always_first)


@functools.cache
def find_pass_order() -> PassOrder | None:
    """Find the order of the installed Pillow with probe pictures, which takes a few milliseconds.

    None: another order than those we know; pictures are then resized whole.
    """
    return next(
        (order for order in PASS_ORDERS if all(order_fits(sizes, order) for sizes in PROBES)), None
    )


# Enlarged and shrunk, by little and by much, along both sides.
PROBES = tuple(
    Sizes(*old, *new)
    for old, new in itertools.product(
        ((48, 64), (64, 48), (100, 20), (20, 100)), ((8, 60), (40, 40), (60, 8))
    )
)


def order_fits(sizes: Sizes, order: PassOrder) -> bool:
    """Whether Pillow resizes noise of this size as two passes in this order do."""
    levels = np.arange(sizes.old_height * sizes.old_width * 3) * 7919 % 509 // 2  # as good as noise
    image = Image.fromarray(levels.astype(np.uint8).reshape(sizes.old_height, sizes.old_width, 3))
    if order(sizes):
        between = _resize(image, sizes.old_height, sizes.width)
    else:
        between = _resize(image, sizes.height, sizes.old_width)
    passes, whole = (_resize(part, sizes.height, sizes.width) for part in (between, image))
    return passes.tobytes() == whole.tobytes()


Part = tuple[int, int]
ShareOut = Callable[[Callable[[Part], None], Sequence[Part]], None]


def _resize_rows_first(
    image: RgbImage,
    sizes: Sizes,
    write: WritePiece,
    step: int,
    num_parts: int,
    share_out: ShareOut,
) -> None:
    num_bands = _count_crops(sizes, num_parts)
    bands, columns = _cut(sizes.old_height, 1, num_bands), _cut(sizes.width, step, num_parts)
    strips = {part: Image.new("RGB", (part[1] - part[0], sizes.old_height)) for part in columns}

    def resize_rows(band: Part) -> None:
        low, high = band
        wide = _crop(image, (0, low, sizes.old_width, high))
        narrow = _resize(wide, high - low, sizes.width)
        for (left, _), strip in strips.items():
            strip.paste(narrow, (-left, low))

    def resize_columns(part: Part) -> None:
        strip = _resize(strips.pop(part), sizes.height, part[1] - part[0])
        write(np.asarray(strip), 0, part[0])

    share_out(resize_rows, bands)
    share_out(resize_columns, columns)


def _resize_columns_first(
    image: RgbImage,
    sizes: Sizes,
    write: WritePiece,
    step: int,
    num_parts: int,
    share_out: ShareOut,
) -> None:
    num_strips = _count_crops(sizes, num_parts)
    columns, rows = _cut(sizes.old_width, 1, num_strips), _cut(sizes.height, step, num_parts)
    bands = {part: Image.new("RGB", (sizes.old_width, part[1] - part[0])) for part in rows}

    def resize_columns(part: Part) -> None:
        low, high = part
        tall = _crop(image, (low, 0, high, sizes.old_height))
        short = _resize(tall, sizes.height, high - low)
        for (top, _), band in bands.items():
            band.paste(short, (low, -top))

    def resize_rows(part: Part) -> None:
        band = _resize(bands.pop(part), part[1] - part[0], sizes.width)
        write(np.asarray(band), part[0], 0)

    share_out(resize_columns, columns)
    share_out(resize_rows, rows)


def _crop(image: RgbImage, box: tuple[int, int, int, int]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.crop(box)
    left, top, right, bottom = box
    return Image.fromarray(image[top:bottom, left:right])


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _cut(size: int, step: int, num_parts: int) -> list[Part]:
    """Cut 0 to `size` into about equal parts that start at multiples of `step`."""
    edges = [size * i // num_parts // step * step for i in range(num_parts)] + [size]
    return [pair for pair in itertools.pairwise(edges) if pair[0] < pair[1]]


def _count_crops(sizes: Sizes, num_threads: int) -> int:
    """The number of parts that the old picture is cut into: a multiple of the threads."""
    num_pixels = sizes.old_height * sizes.old_width
    return num_threads * -(-num_pixels // (num_threads * CROP_PIXELS))


def _share_out(
    pool: ThreadPoolExecutor, num_threads: int, work: Callable[[Part], None], parts: Sequence[Part]
) -> None:
    """Deal the parts out to the threads: this thread takes one share, the pool the others."""

    def do_share(first: int) -> None:
        for part in parts[first::num_threads]:
            work(part)

    futures = [pool.submit(do_share, first) for first in range(1, num_threads)]
    do_share(0)
    for future in futures:
        future.result()
