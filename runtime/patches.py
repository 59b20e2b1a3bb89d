"""Naive Dynamic Resolution: a picture at its own aspect ratio, or frames -> the ViT's patches.

A patch is patch_size² pixels, a visual token merge_size² patches. Patches are ordered so that those
of one visual token lie side by side: token row, token column, row in token, column in token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .manifest import PixelBudget, VisionSpec
from .resize import ResizeRule, resize_bicubic, smart_resize

VIDEO_FRAME_MAX_PIXELS = 768 * 28 * 28  # of one frame; the models' authors use the same
MAX_FRAMES = 768  # of one clip; the models' authors sample no more


class Grid(NamedTuple):
    """Frame pairs (an image has one), rows and columns of patches, before merging."""

    t: int
    h: int
    w: int


@dataclass(frozen=True, slots=True)
class VisualInput:
    """A picture or a clip as the vision graphs take it; frame pairs are the graphs' batch.

    `pixel_values` holds raw RGB levels: uint8[1, h*w, 588] of an image, 588 = 3 channels * 14 * 14,
    or uint8[t, h*w, 1176] of a clip, 1176 = 3 channels * 2 frames * 14 * 14.
    """

    kind: Literal["image", "video"]
    pixel_values: NDArray[np.uint8]
    position_ids: NDArray[np.int64]  # [t, h*w, 2], (row, column) of each patch
    grid: Grid
    num_tokens: int
    notice: str | None  # what the pixel budget did to the picture, if it did


def make_image_input(
    image: NDArray[np.uint8],
    pixels: PixelBudget,
    vision: VisionSpec,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize_rule: ResizeRule = "transformers",
) -> VisualInput:
    """Resize a picture to whole visual tokens within the budget and cut it into patches.

    Args:
        image: uint8[H, W, 3] as `images.read_image` returns it.
        pixels: the bundle's budget; a request can narrow it, never widen it.
        vision: the bundle's vision constants.
        min_pixels: of this request; None: the bundle's.
        max_pixels: of this request; None: the bundle's.
        resize_rule: see `resize.smart_resize`.

    Raises:
        ValueError: wrong array, limits that make no sense, an aspect ratio over 200.
    """
    _check_rgb(image, "picture")
    limits, notice = _make_limits(pixels, min_pixels, max_pixels)
    height, width = image.shape[:2]
    factor = vision.patch_size * vision.spatial_merge_size
    size = smart_resize(height, width, factor, *limits, rule=resize_rule)
    patches = patchify(resize_bicubic(image, *size)[None], vision)
    return _make_input("image", patches, size, vision, (height, width), limits, notice)


def make_video_input(
    frames: Sequence[NDArray[np.uint8]],
    pixels: PixelBudget,
    vision: VisionSpec,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize_rule: ResizeRule = "transformers",
) -> VisualInput:
    """Resize the frames of a clip alike and cut each pair of them into patches.

    An odd frame at the end is paired with itself. The budget is counted over the whole clip: its
    frame pairs together take no more pixels than one picture may, and a single frame no more than
    768 × 28².

    Args:
        frames: uint8[H, W, 3] each, all of one size, in order.
        pixels: the bundle's budget.
        vision: the bundle's vision constants.
        min_pixels: of one frame; None: the bundle's.
        max_pixels: of one frame; None: what the budget leaves.
        resize_rule: see `resize.smart_resize`.

    Raises:
        ValueError: no frames, too many for the budget, of different sizes, or as for an image.
    """
    if not len(frames):
        raise ValueError("clip has no frames, needed at least one")
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"clip has {len(frames)} frames, at most {MAX_FRAMES} can be taken")
    for index, frame in enumerate(frames):
        _check_rgb(frame, f"frame {index}")
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"frame {index} is {_name_size(frame.shape)}, frame 0 is "
                f"{_name_size(frames[0].shape)}: frames of a clip have one size; give unrelated "
                "pictures as images"
            )
    num_pairs = -(-len(frames) // vision.temporal_patch_size)
    share = min(pixels.max_pixels // num_pairs, max(VIDEO_FRAME_MAX_PIXELS, pixels.min_pixels))
    if share < pixels.min_pixels:
        raise ValueError(
            f"clip has {len(frames)} frames of at least {pixels.min_pixels} pixels, the bundle's "
            f"{pixels.max_pixels} hold "
            f"{pixels.max_pixels // pixels.min_pixels * vision.temporal_patch_size}: "
            "take fewer of them"
        )
    budget = PixelBudget(pixels.min_pixels, share, pixels.image_mean, pixels.image_std)
    limits, notice = _make_limits(budget, min_pixels, max_pixels)
    height, width = frames[0].shape[:2]
    factor = vision.patch_size * vision.spatial_merge_size
    size = smart_resize(height, width, factor, *limits, rule=resize_rule)
    grid_h, grid_w = (side // vision.patch_size for side in size)
    pair_values = vision.temporal_patch_size * 3 * vision.patch_size**2
    patches = np.empty((num_pairs, grid_h * grid_w, pair_values), np.uint8)
    for index in range(num_pairs):
        first = index * vision.temporal_patch_size
        pair = [
            resize_bicubic(frame, *size)
            for frame in frames[first : first + vision.temporal_patch_size]
        ]
        pair += pair[-1:] * (vision.temporal_patch_size - len(pair))
        patches[index] = patchify(np.stack(pair), vision)
    return _make_input("video", patches, size, vision, (height, width), limits, notice)


def patchify(frames: NDArray[np.uint8], vision: VisionSpec) -> NDArray[np.uint8]:
    """Cut a picture, or the frames of one temporal patch, in one transpose.

    Args:
        frames: uint8[F, H, W, 3], F = 1 for a picture; H and W whole visual tokens.
        vision: patch and merge size.

    Returns:
        uint8[H/14 * W/14, 3 * F * 14 * 14]; within a patch channel, frame, row, column.
    """
    num_frames, height, width, _ = frames.shape
    side, merge = vision.patch_size, vision.spatial_merge_size
    token_px = side * merge
    if height % token_px or width % token_px:
        raise ValueError(f"frames are {width}x{height}, needed multiples of {token_px}")
    tiles = frames.reshape(
        num_frames, height // token_px, merge, side, width // token_px, merge, side, 3
    )
    tiles = tiles.transpose(1, 4, 2, 5, 7, 0, 3, 6)  # row, column, row, column in token, c, f, y, x
    return tiles.reshape(height // side * (width // side), 3 * num_frames * side * side)


def vision_position_ids(grid: Grid, merge_size: int) -> NDArray[np.int64]:
    """Row and column of each patch in the patches' order, int64[t, h*w, 2]; no time in the ViT."""
    t, h, w = grid
    places = np.indices((h, w)).reshape(2, h // merge_size, merge_size, w // merge_size, merge_size)
    places = places.transpose(1, 3, 2, 4, 0).reshape(1, h * w, 2)
    return np.repeat(places.astype(np.int64, copy=False), t, axis=0)


def normalize_patches(
    pixel_values: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    patch_size: int = 14,
    temporal_patch_size: int = 2,
) -> NDArray[np.float32]:
    """The float patches that transformers' PIL image processor makes, bit for bit.

    The graphs of a bundle normalize by themselves; this is for other consumers and for comparison.
    transformers multiplies by 1/255 in double precision, rounds to single and goes on in single:
    256 levels and three channels, so a table holds every value there is.

    Args:
        pixel_values: uint8[..., 588] of a picture, its frame is doubled, or uint8[..., 1176].
        mean: of each channel, of levels 0 to 1.
        std: of each channel.
        patch_size: in pixels.
        temporal_patch_size: frames per patch.

    Returns:
        float32[..., 1176].
    """
    area = patch_size * patch_size
    num_frames, rest = divmod(pixel_values.shape[-1], 3 * area)
    if rest or num_frames not in (1, temporal_patch_size) or pixel_values.dtype != np.uint8:
        raise ValueError(
            f"patches are {pixel_values.dtype}{list(pixel_values.shape)}, needed uint8 with "
            f"{3 * area} or {3 * area * temporal_patch_size} values each"
        )
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    means, stds = (np.asarray(values, np.float32)[:, None] for values in (mean, std))
    tables = (levels - means) / stds
    patches = pixel_values.reshape(*pixel_values.shape[:-1], 3, num_frames, area)
    shape = (*pixel_values.shape[:-1], 3, temporal_patch_size, area)
    normalized = np.empty(shape, np.float32)
    for channel, table in enumerate(tables):
        normalized[..., channel, :, :] = table[patches[..., channel, :, :]]
    return normalized.reshape(*pixel_values.shape[:-1], -1)


def _make_limits(
    pixels: PixelBudget, min_pixels: int | None, max_pixels: int | None
) -> tuple[tuple[int, int], str | None]:
    """A request's limits brought into the bundle's budget, and a word where that changed them."""
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


def _make_input(
    kind: Literal["image", "video"],
    patches: NDArray[np.uint8],
    size: tuple[int, int],
    vision: VisionSpec,
    old_size: tuple[int, int],
    limits: tuple[int, int],
    notice: str | None,
) -> VisualInput:
    """Put together what both kinds have in common."""
    token_px = vision.patch_size * vision.spatial_merge_size
    is_shrunk = math.prod(round(side / token_px) * token_px for side in old_size) > limits[1]
    values = patches if patches.ndim == 3 else patches[None]
    grid = Grid(len(values), *(side // vision.patch_size for side in size))
    num_tokens = grid.t * grid.h * grid.w // vision.spatial_merge_size**2
    notices = [notice] if notice else []
    if is_shrunk:
        notices.append(
            f"resized from {_name_size(old_size)} to {_name_size(size)} ({num_tokens} tokens): "
            f"over the budget of {limits[1]} pixels"
        )
    return VisualInput(
        kind=kind,
        pixel_values=values,
        position_ids=vision_position_ids(grid, vision.spatial_merge_size),
        grid=grid,
        num_tokens=num_tokens,
        notice="; ".join(notices) or None,
    )


def _name_size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _check_rgb(image: NDArray[np.uint8], name: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"{name} is {image.dtype}{list(image.shape)}, needed uint8[H, W, 3]: "
            "images.read_image makes one of any picture"
        )
