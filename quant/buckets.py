"""The size a picture or clip is seen at -> the bucket that calibration and checks group it by."""

from __future__ import annotations

from ..runtime.manifest import VisionSpec
from ..runtime.patches import Grid, VisualInput

TEXT = "text"  # of what has no picture


def name_bucket(visual: VisualInput, vision: VisionSpec) -> str:
    """Pixels after resizing, width first: "448x336", or "clip 84x84x2" of two frame pairs."""
    return name_grid(visual.grid, vision, is_clip=visual.kind == "video")


def name_grid(grid: Grid, vision: VisionSpec, *, is_clip: bool) -> str:
    """As `name_bucket`, of a grid in patches."""
    size = f"{grid.w * vision.patch_size}x{grid.h * vision.patch_size}"
    return f"clip {size}x{grid.t}" if is_clip else size
