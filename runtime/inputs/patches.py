"""Cut a picture or frames into the ViT's patches at their own aspect ratio.

A patch is patch_size² pixels, a visual token merge_size² patches. Patches are ordered so that those
of one visual token lie side by side: token row, token column, row in token, column in token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle.manifest import PixelBudget, VisionSpec
from ..threads import count_cpus
from .bicubic import RgbImage, get_size, resize_in_pieces
from .resize import ResizeRule, make_limits, smart_resize

VIDEO_FRAME_MAX_PIXELS = 768 * 28 * 28  # in one frame, as the models' authors have it
MAX_FRAMES = 768  # in one clip; the models' authors sample no more


class Grid(NamedTuple):
    """Frame pairs (an image has one), rows and columns of patches, before merging."""

    t: int
    h: int
    w: int


@dataclass(frozen=True, slots=True)
class VisualInput:
    """A picture or a clip as the vision graphs take it; frame pairs are the graphs' batch.

    `pixel_values` holds raw RGB levels: of an image uint8[1, h*w, 588], 588 = 3 channels * 14 * 14,
    of a clip uint8[t, h*w, 1176], 1176 = 3 channels * 2 frames * 14 * 14.
    """

    kind: Literal["image", "video"]
    pixel_values: NDArray[np.uint8]
    position_ids: NDArray[np.int64]  # [t, h*w, 2], (row, column) of each patch
    grid: Grid
    num_tokens: int
    notice: str | None  # says how the pixel budget changed the picture, if it did


def make_image_input(
    image: RgbImage,
    pixels: PixelBudget,
    vision: VisionSpec,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize_rule: ResizeRule = "transformers",
) -> VisualInput:
    """Resize a picture to whole visual tokens within the budget and cut it into patches.

    Args:
        image: what `images.open_image` or `read_image` return: a Pillow picture of mode RGB or
            uint8[H, W, 3].
        pixels: the bundle's budget; a request can narrow it, never widen it.
        vision: the bundle's vision constants.
        min_pixels: this request's lower limit; None: the bundle's.
        max_pixels: this request's upper limit; None: the bundle's.
        resize_rule: see `resize.smart_resize`.

    Raises:
        ValueError: the array has another dtype or shape, the limits make no sense, or the aspect
            ratio is over 200.
    """
    return _make_input("image", [image], 1, pixels, (min_pixels, max_pixels), vision, resize_rule)


def make_video_input(
    frames: Sequence[RgbImage],
    pixels: PixelBudget,
    vision: VisionSpec,
    *,
    clip_pixels: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize_rule: ResizeRule = "transformers",
) -> VisualInput:
    """Resize the frames of a clip alike and cut each pair of them into patches.

    An odd frame at the end is paired with itself; `share_budget` says how large a frame may be.

    Args:
        frames: Pillow pictures or uint8[H, W, 3], all of one size, in order; `video.Frames` opens
            them one by one.
        pixels: the budget of one picture.
        vision: the bundle's vision constants.
        clip_pixels: budget of all frame pairs together; None: as much as one picture.
        min_pixels: lower limit of one frame; None: the bundle's.
        max_pixels: upper limit of one frame; None: its share of the budget.
        resize_rule: see `resize.smart_resize`.

    Raises:
        ValueError: there are no frames, too many for the budget, or frames of different sizes; or
            as for an image.
    """
    budget = share_budget(len(frames), pixels, vision, clip_pixels)
    limits = (min_pixels, max_pixels)
    return _make_input(
        "video", frames, vision.temporal_patch_size, budget, limits, vision, resize_rule
    )


def share_budget(
    num_frames: int, pixels: PixelBudget, vision: VisionSpec, clip_pixels: int | None = None
) -> PixelBudget:
    """The budget of each frame of a clip.

    Frame pairs share the clip's budget equally. A frame gets no more pixels than the bundle allows
    a frame, and no more than 768 × 28².

    Args:
        num_frames: frames in the clip.
        pixels: the budget of one picture.
        vision: the bundle's vision constants.
        clip_pixels: budget of all frame pairs together; None: as much as one picture.

    Raises:
        ValueError: there are no frames, or too many for the budget.
    """
    if not num_frames:
        raise ValueError("clip has no frames, needed at least one")
    if num_frames > MAX_FRAMES:
        raise ValueError(f"clip has {num_frames} frames, at most {MAX_FRAMES} can be taken")
    total = pixels.max_pixels if clip_pixels is None else clip_pixels
    least, _ = pixels.frame_limits
    share = min(total // -(-num_frames // vision.temporal_patch_size), limit_frame(pixels))
    if share < least:
        raise ValueError(
            f"clip has {num_frames} frames of at least {least} pixels each, the budget of {total} "
            f"pixels can hold {total // least * vision.temporal_patch_size}: take fewer frames"
        )
    return dataclasses.replace(pixels, min_pixels=least, max_pixels=share)


def limit_frame(pixels: PixelBudget) -> int:
    """The most pixels of one frame of a clip, however few there are."""
    least, most = pixels.frame_limits
    return min(most, max(VIDEO_FRAME_MAX_PIXELS, least))


def count_visual_tokens(
    size: tuple[int, int],
    num_frames: int | None,
    pixels: PixelBudget,
    vision: VisionSpec,
    *,
    clip_pixels: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize_rule: ResizeRule = "transformers",
) -> int:
    """How many tokens `make_image_input` or `make_video_input` would make of a size.

    Args:
        size: height and width in pixels, in either order: the count is the same.
        num_frames: frames of a clip; None: a picture.
        pixels: see `make_image_input` and `make_video_input`, also for the rest.
        vision: see there.
        clip_pixels: see there.
        min_pixels: see there.
        max_pixels: see there.
        resize_rule: see there.

    Raises:
        ValueError: as they raise it.
    """
    num_slices = 1
    if num_frames is not None:
        pixels = share_budget(num_frames, pixels, vision, clip_pixels)
        num_slices = -(-num_frames // vision.temporal_patch_size)
    (smallest, largest), _ = make_limits(pixels, min_pixels, max_pixels)
    token_px = vision.patch_size * vision.spatial_merge_size
    height, width = smart_resize(*size, token_px, smallest, largest, rule=resize_rule)
    return num_slices * (height // token_px) * (width // token_px)


def patchify(image: NDArray[np.uint8], vision: VisionSpec) -> NDArray[np.uint8]:
    """View a picture as patches: one transpose, no copy.

    Args:
        image: uint8[H, W, 3], H and W whole visual tokens.
        vision: patch and merge size.

    Returns:
        uint8[H / 28, W / 28, 2, 2, 3, 14, 14]: token row and column, row and column in the token,
        channel, row and column in the patch. Flattened to [N, 588] these are a graph's patches.
    """
    height, width, _ = image.shape
    side, merge = vision.patch_size, vision.spatial_merge_size
    token_px = side * merge
    if height % token_px or width % token_px:
        raise ValueError(f"picture is {width}x{height}, needed multiples of {token_px}")
    tiles = image.reshape(height // token_px, merge, side, width // token_px, merge, side, 3)
    return tiles.transpose(0, 3, 1, 4, 6, 2, 5)


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

    The graphs of a bundle normalize for themselves; this is for other programs and for comparison.
    transformers multiplies by 1/255 in double precision, rounds to single and goes on in single:
    256 levels and three channels, so a table holds every value there is.

    Args:
        pixel_values: uint8[..., 588] of a picture, whose frame is doubled, or uint8[..., 1176].
        mean: mean of each channel, on levels of 0 to 1.
        std: standard deviation of each channel.
        patch_size: side of a patch, in pixels.
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


def _make_input(
    kind: Literal["image", "video"],
    frames: Sequence[RgbImage],
    frames_per_patch: int,
    budget: PixelBudget,
    limits: tuple[int | None, int | None],
    vision: VisionSpec,
    resize_rule: ResizeRule,
) -> VisualInput:
    """Resize frames of one size and cut them into patches: the common part of picture and clip."""
    (smallest, largest), notice = make_limits(budget, *limits)
    first = frames[0]
    _check_rgb(first, "picture" if kind == "image" else "frame 0")
    old_height, old_width = old_size = get_size(first)
    token_px = vision.patch_size * vision.spatial_merge_size
    height, width = smart_resize(
        old_height, old_width, token_px, smallest, largest, rule=resize_rule
    )
    num_slices = -(-len(frames) // frames_per_patch)
    grid = Grid(num_slices, height // vision.patch_size, width // vision.patch_size)
    num_tokens = math.prod(grid) // vision.spatial_merge_size**2
    token_grid = (height // token_px, width // token_px)
    inner = (vision.spatial_merge_size, vision.spatial_merge_size, 3)
    area = (vision.patch_size, vision.patch_size)
    patches = np.empty((num_slices, *token_grid, *inner, frames_per_patch, *area), np.uint8)

    def cut_frame(index: int, num_threads: int | None = 1) -> None:
        frame = frames[index] if index else first
        _check_rgb(frame, f"frame {index}")
        if get_size(frame) != old_size:
            raise ValueError(
                f"frame {index} is {_name_size(frame)}, frame 0 is {_name_size(first)}: frames of "
                "a clip have one size; give unrelated pictures as images"
            )
        target = patches[index // frames_per_patch, ..., index % frames_per_patch, :, :]

        def write(piece: NDArray[np.uint8], top: int, left: int) -> None:
            tiles, row, column = patchify(piece, vision), top // token_px, left // token_px
            target[row : row + tiles.shape[0], column : column + tiles.shape[1]] = tiles

        resize_in_pieces(
            frame,
            height,
            width,
            write,
            step=token_px,
            num_threads=num_threads,
            resample=budget.resample,
        )

    if len(frames) == 1:
        cut_frame(0, num_threads=None)
    else:
        with ThreadPoolExecutor(min(count_cpus(), len(frames))) as pool:
            list(pool.map(cut_frame, range(len(frames))))
    last = (len(frames) - 1) % frames_per_patch  # the frame that fills up the last pair
    patches[-1, ..., last + 1 :, :, :] = patches[-1, ..., last : last + 1, :, :]

    rounded = [round(side / token_px) * token_px for side in old_size]
    notices = [notice] if notice else []
    if math.prod(rounded) > largest:
        notices.append(
            f"resized from {old_width}x{old_height} to {width}x{height} ({num_tokens} tokens): "
            f"over the budget of {largest} pixels"
        )
    return VisualInput(
        kind=kind,
        pixel_values=patches.reshape(num_slices, grid.h * grid.w, -1),
        position_ids=vision_position_ids(grid, vision.spatial_merge_size),
        grid=grid,
        num_tokens=num_tokens,
        notice="; ".join(notices) or None,
    )


def _name_size(image: RgbImage) -> str:
    height, width = get_size(image)
    return f"{width}x{height}"


def _check_rgb(image: RgbImage, name: str) -> None:
    if isinstance(image, Image.Image):
        what, is_rgb = f"a Pillow picture of mode {image.mode}", image.mode == "RGB"
    else:
        what = f"{image.dtype}{list(image.shape)}"
        is_rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not is_rgb:
        raise ValueError(
            f"{name} is {what}, needed mode RGB or uint8[H, W, 3]: images.read_image turns any "
            "picture into that"
        )
