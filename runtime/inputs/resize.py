"""Choose the size at which the model sees a picture (Naive Dynamic Resolution)."""

from __future__ import annotations

import math
from typing import Literal, get_args

from ..bundle.manifest import PixelBudget

ResizeRule = Literal["transformers", "qwen_vl_utils"]
MAX_ASPECT = 200  # longest over shortest side, as in both reference implementations
MAX_SIDE_PX = 1 << 31  # beyond what any picture format holds; keeps the arithmetic exact


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
        height: the picture's height, in pixels.
        width: the picture's width, in pixels.
        factor: patch size × merge size, in pixels.
        min_pixels: smaller pictures are enlarged.
        max_pixels: larger pictures are shrunk.
        rule: how thin pictures are treated.

    Returns:
        (height, width) to resize to.

    Raises:
        ValueError: a side is 0 or absurdly long, the aspect ratio is over 200, the lower limit is
            above the upper one, or nothing would be left of the picture.
    """
    if rule not in get_args(ResizeRule):
        raise ValueError(
            f"resize rule is {rule!r}, needed one of {', '.join(get_args(ResizeRule))}"
        )
    if not (0 < height < MAX_SIDE_PX and 0 < width < MAX_SIDE_PX):
        raise ValueError(f"picture is {width}x{height}, needed sides of 1 to {MAX_SIDE_PX - 1}")
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(
            f"pixel limits are {min_pixels} to {max_pixels}, needed 0 < minimum <= maximum"
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
            f"nothing is left of a {width}x{height} picture when the rule of {rule} shrinks it to "
            f"{max_pixels} pixels: raise max_pixels"
        )
    return rows, columns


def make_limits(
    pixels: PixelBudget, min_pixels: int | None, max_pixels: int | None
) -> tuple[tuple[int, int], str | None]:
    """Bring a request's limits into the bundle's budget.

    Args:
        pixels: the bundle's budget.
        min_pixels: the request's lower limit; None: the bundle's.
        max_pixels: the request's upper limit; None: the bundle's.

    Returns:
        (smallest, largest): for `smart_resize`.
        notice: says which limits were changed, if any.

    Raises:
        ValueError: a limit is not positive, or the lower one is above the upper one.
    """
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, needed a positive number of pixels")
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ValueError(f"min_pixels {min_pixels} is above max_pixels {max_pixels}")
    low, high = pixels.min_pixels, pixels.max_pixels
    asked_max = high if max_pixels is None else max_pixels
    asked_min = min(low, asked_max) if min_pixels is None else min_pixels
    largest = min(max(asked_max, low), high)
    smallest = min(max(asked_min, low), largest)
    outside = [
        f"{name} {asked} taken as {taken}"
        for name, asked, taken in (
            ("min_pixels", min_pixels, smallest),
            ("max_pixels", max_pixels, largest),
        )
        if asked is not None and asked != taken
    ]
    notice = f"{', '.join(outside)}: the budget is {low} to {high} pixels" if outside else None
    return (smallest, largest), notice
