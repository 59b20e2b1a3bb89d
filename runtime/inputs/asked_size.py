"""Pictures at a size that the message asks for: `resized_height` and `resized_width`.

The rule is that of qwen-vl-utils (`fetch_image`): its own smart_resize brings both sides to
multiples of 28 within 4 to 16384 visual tokens, the picture is resized to them even if that changes
its aspect ratio, and the model's own resizing comes after that; it changes nothing within the
budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..bundle.manifest import VisionSpec
from .bicubic import RgbImage
from .images import open_image
from .messages import MediaPart
from .resize import smart_resize

MIN_TOKENS, MAX_TOKENS = 4, 16384


def find_asked_size(part: MediaPart, vision: VisionSpec) -> tuple[int, int] | None:
    """(height, width) that a part's pictures are resized to first; None: it asks for no size.

    Raises:
        ValueError: one side is over 200 times the other.
    """
    if part.resized is None:
        return None
    factor = vision.patch_size * vision.spatial_merge_size
    limits = (MIN_TOKENS * factor**2, MAX_TOKENS * factor**2)
    return smart_resize(*part.resized, factor, *limits, rule="qwen_vl_utils")


def open_at_size(source: Any, size: tuple[int, int] | None) -> RgbImage:
    """A picture as `images.open_image` reads it, resized to (height, width) by Pillow's bicubic.

    Returns:
        A Pillow picture of mode RGB, or uint8[H, W, 3].

    Raises:
        ImageError: the picture can't be read.
    """
    image = open_image(source)
    if size is None:
        return image
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
