"""Sizes that a message asks for, by qwen-vl-utils' rule, written out here a second time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmedge.runtime.bundle.manifest import VisionSpec
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.inputs.asked_size import find_asked_size, open_at_size
from vlmedge.runtime.inputs.messages import MediaPart
from vlmedge.runtime.inputs.patches import make_image_input
from vlmedge.runtime.inputs.request import RequestMaker

VISION = VisionSpec(32, 1280, 16, 14, 2, 2)


def resize_as_qwen_vl_utils(height, width):
    """smart_resize of qwen-vl-utils 0.0.8 with its own limits."""
    rows, columns = (max(28, round(side / 28) * 28) for side in (height, width))
    if rows * columns > 16384 * 28 * 28:
        shrink = math.sqrt(height * width / (16384 * 28 * 28))
        rows, columns = (math.floor(side / shrink / 28) * 28 for side in (height, width))
    elif rows * columns < 4 * 28 * 28:
        grow = math.sqrt(4 * 28 * 28 / (height * width))
        rows, columns = (math.ceil(side * grow / 28) * 28 for side in (height, width))
    return rows, columns


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_asked_sizes_are_rounded_as_qwen_vl_utils_does(height, width):
    part = MediaPart("image", ("a",), resized=(height, width))
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="200 times"):
            find_asked_size(part, VISION)
    else:
        assert find_asked_size(part, VISION) == resize_as_qwen_vl_utils(height, width)


def test_the_picture_is_brought_to_the_size_and_then_seen_by_the_budget(tiny):
    manifest = read_manifest(tiny.bundle)
    maker = RequestMaker(tiny.bundle, manifest, None)
    picture = Image.effect_noise((300, 100), 60).convert("RGB")
    part = {"type": "image", "image": picture, "resized_height": 90, "resized_width": 60}
    request = maker.make([{"role": "user", "content": [part]}])
    resized = picture.resize((56, 84), Image.Resampling.BICUBIC)
    needed = make_image_input(resized, manifest.pixels, manifest.vision)
    np.testing.assert_array_equal(request.visuals[0].pixel_values, needed.pixel_values)
    assert request.visuals[0].grid == needed.grid


def test_frames_of_a_clip_are_brought_to_the_size(tiny):
    maker = RequestMaker(tiny.bundle, read_manifest(tiny.bundle), None)
    frames = [np.full((50, 70, 3), level, np.uint8) for level in (0, 255)]
    part = {"type": "video", "video": frames, "resized_height": 112, "resized_width": 56}
    request = maker.make([{"role": "user", "content": [part]}])
    assert tuple(request.visuals[0].grid) == (1, 8, 4)


def test_no_size_leaves_the_picture_as_it_is():
    array = np.zeros((3, 5, 3), np.uint8)
    assert find_asked_size(MediaPart("image", (array,)), VISION) is None
    assert np.shape(open_at_size(array, None)) == (3, 5, 3)
