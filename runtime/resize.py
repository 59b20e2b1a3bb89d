"""Naive Dynamic Resolution: the size a picture is given, and the exact bicubic resize to it."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ResizeRule = Literal["transformers", "qwen_vl_utils"]
MAX_ASPECT = 200  # longest over shortest side, of both reference implementations
MAX_SIDE_PX = 1 << 31  # beyond what any picture format holds; keeps the arithmetic exact
MIN_THREADED_PIXELS = 1 << 18  # below, starting threads costs more than they save


def smart_resize(
    height: int,
    width: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    *,
    rule: ResizeRule = "transformers",
) -> tuple[int, int]:
    """The size a picture is resized to: sides multiples of `factor`, the area within the limits.

    Sides are rounded half to even. Two rules are in use: "transformers" (4.57 and newer) rounds a
    side under factor / 2 to 0, so that the picture counts as too small and is enlarged, and never
    shrinks a side below `factor`; "qwen_vl_utils" starts every side at `factor` at least, but may
    shrink it to nothing. Where neither happens they agree.

    A very long picture keeps a side of `factor` and so may stay above `max_pixels`.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        factor: patch size × merge size, in pixels.
        min_pixels: smaller pictures are enlarged.
        max_pixels: larger pictures are shrunk.
        rule: whose treatment of thin pictures.

    Returns:
        (height, width) to resize to.

    Raises:
        ValueError: a side is 0 or absurd, the aspect ratio is over 200, the limits are crossed, or
            nothing would be left of the picture.
    """
    if rule not in get_args(ResizeRule):
        raise ValueError(
            f"resize rule is {rule!r}, needed one of {', '.join(get_args(ResizeRule))}"
        )
    if not (0 < height < MAX_SIDE_PX and 0 < width < MAX_SIDE_PX):
        raise ValueError(f"picture is {width}x{height}, needed sides of 1 to {MAX_SIDE_PX - 1}")
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(
            f"pixel limits {min_pixels} to {max_pixels} are not 0 < minimum <= maximum"
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"picture is {width}x{height}, one side over {MAX_ASPECT} times the other: "
            "crop it or cut it up"
        )
    smallest = 0 if rule == "transformers" else factor
    rows, columns = (max(smallest, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        smallest = factor if rule == "transformers" else 0
        rows, columns = (
            max(smallest, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    if not rows * columns:
        raise ValueError(
            f"nothing is left of a {width}x{height} picture at {max_pixels} pixels "
            f"by the rule of {rule}: raise max_pixels"
        )
    return rows, columns


def count_cpus() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resize_bicubic(
    image: NDArray[np.uint8], height: int, width: int, *, num_threads: int | None = None
) -> NDArray[np.uint8]:
    """Pillow's bicubic resize, shared out among threads, equal to it in every bit.

    Args:
        image: uint8[h, w, 3].
        height: new height in pixels.
        width: new width in pixels.
        num_threads: None: one per core.

    Returns:
        uint8[height, width, 3].
    """
    resized = np.empty((height, width, 3), np.uint8)

    def write(strip: NDArray[np.uint8], left: int) -> None:
        resized[:, left : left + strip.shape[1]] = strip

    resize_in_strips(image, height, width, write, num_threads=num_threads)
    return resized


def resize_in_strips(
    image: NDArray[np.uint8],
    height: int,
    width: int,
    write: Callable[[NDArray[np.uint8], int], None],
    *,
    step: int = 1,
    num_threads: int | None = None,
) -> None:
    """Resize as `resize_bicubic` does and hand over strips of columns as they are ready.

    Pillow resizes along the rows first, then along the columns, and rounds to 8 bits in between.
    Each row of the first pass and each column of the second depends on itself alone, so bands of
    rows, then strips of columns, go to different threads (Pillow lets go of the interpreter lock)
    through the very code that would have handled the whole. Cutting bands of *output* rows with
    `resize(box=...)` would save two copies, but Pillow takes the box in single precision: off by a
    level here and there where old / new height is no short binary fraction.

    Args:
        image: uint8[h, w, 3].
        height: new height in pixels.
        width: new width in pixels.
        write: takes a strip uint8[height, n, 3] and the column it starts at; is called from several
            threads, once per strip.
        step: strips start at multiples of it.
        num_threads: None: one per core.
    """
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        write(image, 0)
        return
    num_threads = num_threads or count_cpus()
    if num_threads == 1 or max(height * width, old_height * old_width) < MIN_THREADED_PIXELS:
        write(np.asarray(_resize(Image.fromarray(image), height, width)), 0)
        return
    between = Image.new("RGB", (width, old_height))

    def resize_rows(low: int, high: int) -> None:
        band = Image.fromarray(image[low:high])
        between.paste(_resize(band, high - low, width), (0, low))

    def resize_columns(low: int, high: int) -> None:
        strip = between.crop((low, 0, high, old_height))
        write(np.asarray(_resize(strip, height, high - low)), low)

    with ThreadPoolExecutor(num_threads - 1) as pool:
        _share_out(pool, resize_rows, old_height, 1, num_threads)
        _share_out(pool, resize_columns, width, step, num_threads)


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _share_out(
    pool: ThreadPoolExecutor, work: Callable[[int, int], None], size: int, step: int, num_parts: int
) -> None:
    """Cut 0 to `size` into parts, do the last here and the others in the pool."""
    edges = [size * i // num_parts // step * step for i in range(num_parts)] + [size]
    parts = [pair for pair in itertools.pairwise(edges) if pair[0] < pair[1]]
    futures = [pool.submit(work, *part) for part in parts[:-1]]
    work(*parts[-1])
    for future in futures:
        future.result()
