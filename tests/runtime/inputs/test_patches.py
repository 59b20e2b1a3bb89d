"""Patches against transformers' PIL image processor, difference 0: every value is a table's."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.runtime.bundle.manifest import PixelBudget, VisionSpec
from vlmedge.runtime.inputs.images import read_image
from vlmedge.runtime.inputs.patches import (
    MAX_FRAMES,
    Grid,
    make_image_input,
    make_video_input,
    normalize_patches,
    patchify,
    share_budget,
    vision_position_ids,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PIXELS = PixelBudget(3136, 200704, MEAN, STD)
VISION = VisionSpec(32, 1280, 16, 14, 2, 2)
SIZES = [(1, 1), (28, 28), (42, 70), (224, 224), (13, 1000), (333, 777), (900, 640), (1000, 31)]
PHOTOS = ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "page.png", "text.png"]


def make_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def processor():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.Qwen2VLImageProcessorPil(
        min_pixels=PIXELS.min_pixels, max_pixels=PIXELS.max_pixels
    )


def assert_same_as_processor(processor, picture):
    expected = processor(Image.fromarray(picture), return_tensors="np")
    made = make_image_input(picture, PIXELS, VISION)
    assert tuple(expected["image_grid_thw"][0]) == made.grid
    floats = normalize_patches(made.pixel_values, MEAN, STD)[0]
    assert floats.dtype == expected["pixel_values"].dtype
    assert np.array_equal(floats, expected["pixel_values"])


@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_those_of_transformers_to_the_last_bit(processor, size):
    assert_same_as_processor(processor, make_picture(*size))


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_patches_of_any_size_equal_those_of_transformers(processor, height, width, seed):
    if max(height, width) <= 200 * min(height, width):
        assert_same_as_processor(processor, make_picture(height, width, seed))


@pytest.mark.parametrize("name", PHOTOS)
def test_patches_of_photographs_equal_those_of_transformers(processor, name):
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, which brings the photographs, is not installed")
    assert_same_as_processor(processor, read_image(Path(spec.origin).parent / "data" / name))


def test_every_level_of_every_channel_is_normalized_as_transformers_does(processor):
    levels = np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(32, 32)[:28, :28]
    picture = np.stack([levels, levels[::-1], levels.T], axis=2)
    expected = processor(picture, do_resize=False, return_tensors="np")["pixel_values"]
    patches = np.ascontiguousarray(patchify(picture, VISION)).reshape(1, 4, 588)
    assert np.array_equal(normalize_patches(patches, MEAN, STD)[0], expected)


def unpatchify(pixel_values, grid, frames_per_patch):
    """The inverse, written from the order's definition, one patch at a time."""
    frames = np.zeros((grid.t * frames_per_patch, grid.h * 14, grid.w * 14, 3), np.uint8)
    for t in range(grid.t):
        order = iter(range(grid.h * grid.w))
        for row in range(0, grid.h, 2):
            for column in range(0, grid.w, 2):
                for y, x in ((row, column), (row, column + 1), (row + 1, column)):
                    put(frames, pixel_values[t][next(order)], t, y, x, frames_per_patch)
                put(frames, pixel_values[t][next(order)], t, row + 1, column + 1, frames_per_patch)
    return frames


def put(frames, patch, t, row, column, frames_per_patch):
    block = patch.reshape(3, frames_per_patch, 14, 14).transpose(1, 2, 3, 0)
    first = t * frames_per_patch
    rows, columns = slice(row * 14, row * 14 + 14), slice(column * 14, column * 14 + 14)
    frames[first : first + frames_per_patch, rows, columns] = block


@given(st.integers(2, 9), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_putting_the_patches_back_gives_the_picture(rows, columns):
    picture = make_picture(rows * 28, columns * 28)
    made = make_image_input(picture, PIXELS, VISION)
    assert made.grid == (1, rows * 2, columns * 2)
    assert np.array_equal(unpatchify(made.pixel_values, made.grid, 1)[0], picture)


@given(st.integers(1, 7), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_putting_the_patches_back_gives_the_clip_its_last_frame_doubled_if_odd(
    count, rows, columns
):
    frames = [make_picture(rows * 28, columns * 28, seed) for seed in range(count)]
    made = make_video_input(frames, PIXELS, VISION)
    assert made.grid == ((count + 1) // 2, rows * 2, columns * 2)
    assert made.num_tokens == made.grid.t * rows * columns
    expected = np.stack(frames + frames[-1:] * (count % 2))
    assert np.array_equal(unpatchify(made.pixel_values, made.grid, 2), expected)


def test_a_frame_of_a_clip_is_resized_as_the_same_picture_is(processor):
    frames = [make_picture(100, 250, seed) for seed in range(2)]
    made = make_video_input(frames, PIXELS, VISION)
    values = normalize_patches(made.pixel_values, MEAN, STD).reshape(-1, 3, 2, 196)
    for index, frame in enumerate(frames):
        expected = processor(Image.fromarray(frame), return_tensors="np")["pixel_values"]
        assert np.array_equal(values[:, :, index], expected.reshape(-1, 3, 2, 196)[:, :, 0])


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_row_and_column_ids_are_those_of_transformers(t, rows, columns):
    pytest.importorskip("torch")
    vision_utils = pytest.importorskip("transformers.vision_utils")
    import torch

    grid = Grid(t, rows * 2, columns * 2)
    expected = vision_utils.get_vision_position_ids(torch.tensor([grid]), 2).numpy()
    made = vision_position_ids(grid, 2)
    assert made.dtype == np.int64
    assert np.array_equal(made.reshape(-1, 2), expected)


def test_what_the_graphs_get_is_uint8_and_contiguous():
    made = make_image_input(make_picture(56, 84), PIXELS, VISION)
    assert made.pixel_values.shape == (1, 24, 588)
    assert made.position_ids.shape == (1, 24, 2)
    assert made.pixel_values.dtype == np.uint8
    assert made.pixel_values.flags.c_contiguous
    assert made.position_ids.flags.c_contiguous
    assert made.num_tokens == 6
    assert made.notice is None


def test_a_picture_over_the_budget_is_resized_and_says_so():
    made = make_image_input(make_picture(1080, 1920), PIXELS, VISION)
    assert made.notice == (
        "resized from 1920x1080 to 588x336 (252 tokens): over the budget of 200704 pixels"
    )


def test_a_picture_brought_to_whole_tokens_within_the_budget_says_nothing():
    assert make_image_input(make_picture(100, 130), PIXELS, VISION).notice is None


def test_a_request_may_narrow_the_budget():
    made = make_image_input(make_picture(300, 300), PIXELS, VISION, max_pixels=50_000)
    assert made.grid == (1, 14, 14)
    assert "over the budget of 50000 pixels" in made.notice
    made = make_image_input(make_picture(60, 60), PIXELS, VISION, min_pixels=50_000)
    assert made.grid == (1, 16, 16)
    assert made.notice is None


def test_a_request_beyond_the_budget_is_brought_back_and_says_so():
    made = make_image_input(make_picture(900, 900), PIXELS, VISION, max_pixels=10**12)
    assert made.grid == (1, 32, 32)
    assert "max_pixels 1000000000000 taken as 200704" in made.notice
    made = make_image_input(make_picture(30, 30), PIXELS, VISION, min_pixels=1, max_pixels=2)
    assert made.grid == (1, 4, 4)
    assert "min_pixels 1 taken as 3136, max_pixels 2 taken as 3136" in made.notice
    made = make_image_input(make_picture(30, 30), PIXELS, VISION, min_pixels=10**12)
    assert made.grid.h * made.grid.w * 196 <= 484 * 484
    assert "min_pixels 1000000000000 taken as 200704" in made.notice


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_pixels": 5000, "max_pixels": 4000}, "min_pixels 5000 is above max_pixels 4000"),
        ({"min_pixels": 0}, "min_pixels is 0"),
        ({"max_pixels": -1}, "max_pixels is -1"),
        ({"resize_rule": "best"}, "resize rule is 'best'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        make_image_input(make_picture(56, 56), PIXELS, VISION, **limits)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((56, 56, 4), np.uint8),
        np.zeros((56, 56), np.uint8),
        np.zeros((56, 56, 3), np.float32),
        np.zeros((3, 56, 56), np.uint8),
    ],
)
def test_other_arrays_than_rgb_levels_are_refused(array):
    with pytest.raises(ValueError, match=r"needed mode RGB or uint8\[H, W, 3\]"):
        make_image_input(array, PIXELS, VISION)
    with pytest.raises(ValueError, match="frame 0 is"):
        make_video_input([array], PIXELS, VISION)


def test_a_pillow_picture_gives_the_patches_of_its_array():
    for size in ((1080, 720), (100, 130)):
        picture = make_picture(*size)
        from_array = make_image_input(picture, PIXELS, VISION)
        from_picture = make_image_input(Image.fromarray(picture), PIXELS, VISION)
        assert np.array_equal(from_array.pixel_values, from_picture.pixel_values)
    with pytest.raises(ValueError, match="a Pillow picture of mode L"):
        make_image_input(Image.new("L", (56, 56)), PIXELS, VISION)
    frames = [Image.fromarray(make_picture(56, 56, seed)) for seed in range(3)]
    made = make_video_input(frames, PIXELS, VISION)
    expected = make_video_input([np.asarray(frame) for frame in frames], PIXELS, VISION)
    assert np.array_equal(made.pixel_values, expected.pixel_values)


def test_an_absurd_extent_is_refused_before_anything_is_allocated():
    row = np.broadcast_to(np.zeros(3, np.uint8), (1, 1 << 30, 3))
    with pytest.raises(ValueError, match="over 200 times"):
        make_image_input(row, PIXELS, VISION)
    with pytest.raises(ValueError, match="needed sides"):
        make_image_input(np.zeros((0, 56, 3), np.uint8), PIXELS, VISION)


def test_patchify_refuses_part_of_a_token():
    with pytest.raises(ValueError, match="needed multiples of 28"):
        patchify(np.zeros((28, 42, 3), np.uint8), VISION)


@pytest.mark.parametrize("shape", [(4, 587), (4, 1764)])
def test_normalizing_other_than_patches_is_refused(shape):
    with pytest.raises(ValueError, match="588 or 1176"):
        normalize_patches(np.zeros(shape, np.uint8), MEAN, STD)


def test_frames_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="frame 1 is 84x56, frame 0 is 56x56"):
        make_video_input([make_picture(56, 56), make_picture(56, 84)], PIXELS, VISION)


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="no frames"):
        make_video_input([], PIXELS, VISION)


def test_a_long_clip_shares_one_pictures_budget_and_says_so():
    made = make_video_input([make_picture(300, 300)] * 9, PIXELS, VISION)
    assert made.grid.t == 5
    assert made.grid.t * made.grid.h * made.grid.w * 196 <= PIXELS.max_pixels
    assert "over the budget of 40140 pixels" in made.notice


def test_a_clip_too_long_for_the_budget_is_refused():
    with pytest.raises(ValueError, match=r"130 frames .* hold 128: take fewer"):
        make_video_input([make_picture(28, 28)] * 130, PIXELS, VISION)
    with pytest.raises(ValueError, match="at most 768"):
        make_video_input([make_picture(28, 28)] * 769, PIXELS, VISION)


def test_a_clip_may_take_more_than_one_picture_where_it_is_told_how_much():
    """Engines are built for pictures of a size, not for clips of a length."""
    small = dataclasses.replace(PIXELS, max_pixels=20 * 784)
    frames = [make_picture(168, 168)] * 6  # three pairs of 36 tokens
    for clip_pixels, num_tokens in ((None, 3 * 4), (60 * 784, 3 * 16), (10**9, 3 * 16)):
        made = make_video_input(frames, small, VISION, clip_pixels=clip_pixels)
        assert made.num_tokens == num_tokens
    assert "over the budget of 15680 pixels" in made.notice


@given(st.integers(1, MAX_FRAMES), st.integers(1, 20), st.integers(0, 2000), st.integers(0, 10**6))
def test_shares_of_a_clip_are_within_its_budget_and_a_pictures(num_frames, low, more, extra):
    pixels = PixelBudget(784 * low, 784 * (low + more), MEAN, STD)
    clip_pixels = pixels.max_pixels + extra
    num_pairs = -(-num_frames // 2)
    try:
        share = share_budget(num_frames, pixels, VISION, clip_pixels)
    except ValueError as error:
        assert num_pairs * pixels.min_pixels > clip_pixels
        most = int(str(error).split(" hold ")[1].split(":")[0])
        assert share_budget(most, pixels, VISION, clip_pixels).min_pixels == pixels.min_pixels
        return
    assert num_pairs * share.max_pixels <= clip_pixels
    assert pixels.min_pixels == share.min_pixels <= share.max_pixels <= pixels.max_pixels
    assert share.max_pixels <= max(768 * 784, pixels.min_pixels)
    # Not a pixel less than that
    assert num_pairs * (share.max_pixels + 1) > clip_pixels or share.max_pixels in (
        pixels.max_pixels,
        max(768 * 784, pixels.min_pixels),
    )


def test_large_frames_are_held_to_the_authors_limit_of_one_frame():
    wide = PixelBudget(3136, 16384 * 784, MEAN, STD)
    made = make_video_input([make_picture(1400, 1400)], wide, VISION)
    assert made.grid.h * made.grid.w * 196 <= 768 * 784
