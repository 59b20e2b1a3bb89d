"""Naive Dynamic Resolution for the sample: RGB frames -> resized pixels -> the ViT's patches."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sample.spec import CELL_PX, FRAMES_PER_PATCH, MERGE, PATCH_PX

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def round_side(side_px: int) -> int:
    """The multiple of 28 nearest to a side, halves to even; our pictures never meet the limits."""
    return round(side_px / CELL_PX) * CELL_PX


def resize_frames(frames: tuple[Image.Image, ...]) -> NDArray[np.uint8]:
    """uint8[F, H, W, 3], bicubic; the last frame twice where F is odd, so a picture too."""
    width, height = frames[0].size
    size = round_side(width), round_side(height)
    pixels = [np.asarray(frame.resize(size, Image.Resampling.BICUBIC)) for frame in frames]
    if len(pixels) % FRAMES_PER_PATCH:
        pixels.append(pixels[-1])
    return np.stack(pixels)


def cut_patches(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalized patches, the four of one visual token side by side.

    Args:
        pixels: uint8[B, T * 2, H, W, 3].
        dtype: of the result.

    Returns:
        [B * T, N, 1176], 1176 = 3 channels * 2 frames * 14 * 14.
    """
    batch, frames, height, width, _ = pixels.shape
    x = pixels.view(
        batch * frames // 2,
        2,
        height // CELL_PX,
        MERGE,
        PATCH_PX,
        width // CELL_PX,
        MERGE,
        PATCH_PX,
        3,
    )
    x = x.permute(
        0, 2, 5, 3, 6, 8, 1, 4, 7
    )  # slice, cell row, cell column, row in cell, column in cell, c, frame, y, x
    per_channel = FRAMES_PER_PATCH * PATCH_PX * PATCH_PX
    x = x.reshape(batch * frames // 2, -1, 3 * per_channel)
    scale = (1 / 255 / torch.tensor(CLIP_STD)).repeat_interleave(per_channel)
    shift = (torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)).repeat_interleave(per_channel)
    return (x.float() * scale - shift).to(dtype)
