"""Pillow's bicubic resize on all cores, equal to Pillow's own in every bit.

Pillow resizes in two passes, one along the rows, one along the columns, and rounds to 8 bits in
between. In a pass each row (each column) depends on itself alone. So bands of rows and strips of
columns go to different threads, pass by pass, through the very code that would have handled the
whole; Pillow lets go of the interpreter lock meanwhile. Two shorter ways are not exact: cutting the
output with `resize(box=...)`, because Pillow takes the box in single precision, and because which
pass comes first depends on the sizes since Pillow 13.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIN_THREADED_PIXELS = 1 << 18  # below, starting threads costs more than they save

# Takes uint8[n, m, 3] of the new picture and the row and column where it lies.
WritePiece = Callable[[NDArray[np.uint8], int, int], None]


class Sizes(NamedTuple):
    """A picture's old and new height and width in pixels."""

    old_height: int
    old_width: int
    height: int
    width: int


PassOrder = Callable[[Sizes], bool]  # is the pass along the rows, to the new width, the first one?


def resize_bicubic(
    image: NDArray[np.uint8], height: int, width: int, *, num_threads: int | None = None
) -> NDArray[np.uint8]:
    """Resize a picture.

    Args:
        image: uint8[h, w, 3].
        height: new height in pixels.
        width: new width in pixels.
        num_threads: None: one per core.

    Returns:
        uint8[height, width, 3].
    """
    resized = np.empty((height, width, 3), np.uint8)

    def write(piece: NDArray[np.uint8], top: int, left: int) -> None:
        resized[top : top + piece.shape[0], left : left + piece.shape[1]] = piece

    resize_in_pieces(image, height, width, write, num_threads=num_threads)
    return resized


def resize_in_pieces(
    image: NDArray[np.uint8],
    height: int,
    width: int,
    write: WritePiece,
    *,
    step: int = 1,
    num_threads: int | None = None,
) -> None:
    """Resize a picture and hand over each piece of the new one as it is ready.

    Args:
        image: uint8[h, w, 3].
        height: new height in pixels.
        width: new width in pixels.
        write: is called from several threads, once per piece.
        step: pieces start at multiples of it.
        num_threads: None: one per core.
    """
    old_height, old_width, _ = image.shape
    sizes = Sizes(old_height, old_width, height, width)
    if sizes[:2] == sizes[2:]:
        write(image, 0, 0)
        return
    num_threads = num_threads or count_cpus()
    order = find_pass_order() if num_threads > 1 else None
    if order is None or max(height * width, image.size // 3) < MIN_THREADED_PIXELS:
        write(np.asarray(_resize(Image.fromarray(image), height, width)), 0, 0)
        return
    with ThreadPoolExecutor(num_threads - 1) as pool:
        share_out = functools.partial(_share_out, pool, num_threads)
        if order(sizes):
            _resize_rows_first(image, sizes, write, step, share_out)
        else:
            _resize_columns_first(image, sizes, write, step, share_out)


def count_cpus() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    """The order that the installed Pillow keeps on probe pictures, a few milliseconds once.

    None: an order we don't know, and then pictures are resized whole.
    """
    return next(
        (order for order in PASS_ORDERS if all(order_fits(sizes, order) for sizes in PROBES)), None
    )


# Growing and shrinking, by little and by much, along both sides.
PROBES = tuple(
    Sizes(*old, *new)
    for old, new in itertools.product(
        ((48, 64), (64, 48), (100, 20), (20, 100)), ((8, 60), (40, 40), (60, 8))
    )
)


def order_fits(sizes: Sizes, order: PassOrder) -> bool:
    """Does Pillow resize noise of this size as two passes in this order do?"""
    levels = np.arange(sizes.old_height * sizes.old_width * 3) * 7919 % 509 // 2  # as good as noise
    image = Image.fromarray(levels.astype(np.uint8).reshape(sizes.old_height, sizes.old_width, 3))
    if order(sizes):
        between = _resize(image, sizes.old_height, sizes.width)
    else:
        between = _resize(image, sizes.height, sizes.old_width)
    passes, whole = (_resize(part, sizes.height, sizes.width) for part in (between, image))
    return passes.tobytes() == whole.tobytes()


ShareOut = Callable[[Callable[[int, int], None], int, int], None]


def _resize_rows_first(
    image: NDArray[np.uint8], sizes: Sizes, write: WritePiece, step: int, share_out: ShareOut
) -> None:
    between = Image.new("RGB", (sizes.width, sizes.old_height))

    def resize_rows(low: int, high: int) -> None:
        band = Image.fromarray(image[low:high])
        between.paste(_resize(band, high - low, sizes.width), (0, low))

    def resize_columns(low: int, high: int) -> None:
        strip = between.crop((low, 0, high, sizes.old_height))
        write(np.asarray(_resize(strip, sizes.height, high - low)), 0, low)

    share_out(resize_rows, sizes.old_height, 1)
    share_out(resize_columns, sizes.width, step)


def _resize_columns_first(
    image: NDArray[np.uint8], sizes: Sizes, write: WritePiece, step: int, share_out: ShareOut
) -> None:
    between = Image.new("RGB", (sizes.old_width, sizes.height))

    def resize_columns(low: int, high: int) -> None:
        strip = Image.fromarray(image[:, low:high])
        between.paste(_resize(strip, sizes.height, high - low), (low, 0))

    def resize_rows(low: int, high: int) -> None:
        band = between.crop((0, low, sizes.old_width, high))
        write(np.asarray(_resize(band, high - low, sizes.width)), low, 0)

    share_out(resize_columns, sizes.old_width, 1)
    share_out(resize_rows, sizes.height, step)


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _share_out(
    pool: ThreadPoolExecutor, num_parts: int, work: Callable[[int, int], None], size: int, step: int
) -> None:
    """Cut 0 to `size` into parts, do the last one here and the others in the pool."""
    edges = [size * i // num_parts // step * step for i in range(num_parts)] + [size]
    parts = [pair for pair in itertools.pairwise(edges) if pair[0] < pair[1]]
    futures = [pool.submit(work, *part) for part in parts[:-1]]
    work(*parts[-1])
    for future in futures:
        future.result()
