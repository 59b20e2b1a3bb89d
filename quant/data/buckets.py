"""Group pictures by the size the model sees, and tell how well they span a bundle's budget."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...runtime.bundle.manifest import Manifest, VisionSpec
from ...runtime.errors import ImageError
from ...runtime.files.regular_file import check_regular
from ...runtime.inputs.images import EXIF_ORIENTATION
from ...runtime.inputs.patches import VisualInput, limit_frame
from ...runtime.inputs.resize import make_limits, smart_resize
from .examples import Example
from .pictures import get_frames, list_parts

NUM_BUCKETS = 5  # of the budget: each holds pictures of up to about five times the smallest's area
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class SeenSize(NamedTuple):
    """A picture or clip after resizing.

    Attributes:
        num_slices: frame pairs; 0: a picture.
    """

    width: int
    height: int
    num_slices: int

    @property
    def bucket(self) -> str:
        """As findings name it: "448x336", "clip 84x84x2"."""
        size = f"{self.width}x{self.height}"
        return f"clip {size}x{self.num_slices}" if self.num_slices else size


@dataclass(frozen=True, slots=True)
class BucketCount:
    """How many pictures fall into one part of the budget; a clip counts once, by a frame pair.

    Attributes:
        min_tokens, max_tokens: visual tokens of the part, both within it.
    """

    min_tokens: int
    max_tokens: int
    num_pictures: int


def measure_part(part: Mapping[str, Any], manifest: Manifest) -> SeenSize:
    """The size that a picture or clip of a message is resized to, from its header alone.

    Args:
        part: `{"type": "image", "image": source}` or `{"type": "video", "video": [source, ...]}`;
            a source is a path or the bytes of a file.
        manifest: of the bundle.

    Raises:
        ImageError: the picture can't be read.
        ValueError: its shape or its limits make no sense.
    """
    budget, vision = manifest.pixels, manifest.vision
    frames = get_frames(part)
    width, height = _read_size(frames[0])
    num_slices = 0
    if part["type"] == "video":  # as patches.make_video_input shares the budget
        num_slices = -(-len(frames) // vision.temporal_patch_size)
        least, _ = budget.frame_limits
        share = max(least, min(budget.max_pixels // num_slices, limit_frame(budget)))
        budget = dataclasses.replace(budget, min_pixels=least, max_pixels=share)
    limits, _ = make_limits(budget, part.get("min_pixels"), part.get("max_pixels"))
    height, width = smart_resize(height, width, _token_px(vision), *limits)
    return SeenSize(width, height, num_slices)


def resize_bucket(part: Mapping[str, Any], manifest: Manifest) -> str:
    """The bucket of a picture or clip of a message: "448x336", "clip 84x84x2"."""
    return measure_part(part, manifest).bucket


def name_bucket(visual: VisualInput, vision: VisionSpec) -> str:
    """The same of a picture or clip that is already cut into patches."""
    height, width = visual.grid.h * vision.patch_size, visual.grid.w * vision.patch_size
    return SeenSize(width, height, visual.grid.t if visual.kind == "video" else 0).bucket


def coverage_of(examples: Sequence[Example], manifest: Manifest) -> list[BucketCount]:
    """Count pictures over the budget, cut into parts of equal ratio of visual tokens.

    A calibration set has to reach every part: the ranges of a ViT's activations move with the
    number of patches that attend to each other.
    """
    token_area = _token_px(manifest.vision) ** 2
    low = max(1, -(-manifest.pixels.min_pixels // token_area))
    high = max(low, manifest.pixels.max_pixels // token_area)
    edges = np.unique(np.geomspace(low, high + 1, NUM_BUCKETS + 1).round().astype(int))
    sizes = [measure_part(part, manifest) for e in examples for part in list_parts(e)]
    tokens = np.array([size.width * size.height // token_area for size in sizes], int)
    # Very long pictures can lie outside of the budget.
    counts, _ = np.histogram(np.clip(tokens, low, high), edges)
    return [
        BucketCount(int(first), int(end) - 1, int(count))
        for first, end, count in zip(edges, edges[1:], counts, strict=False)
    ]


def summarize(counts: Sequence[BucketCount]) -> list[str]:
    """A line a bucket, the empty ones with a warning."""
    width = len(str(counts[-1].max_tokens))
    return [
        f"{c.min_tokens:>{width}} to {c.max_tokens:>{width}} tokens: "
        + (f"pictures: {c.num_pictures}" if c.num_pictures else "none: add pictures of this size")
        for c in counts
    ]


def _token_px(vision: VisionSpec) -> int:
    return vision.patch_size * vision.spatial_merge_size


def _read_size(source: Any) -> tuple[int, int]:
    """Width and height of the upright picture, without decoding it."""
    try:
        if not isinstance(source, bytes):
            check_regular(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
    except Exception as error:  # Pillow's plugins raise whatever their parsing runs into
        name = "picture" if isinstance(source, bytes) else source
        raise ImageError(f"can't read {name}: {error}") from error
    return (height, width) if turned else (width, height)
