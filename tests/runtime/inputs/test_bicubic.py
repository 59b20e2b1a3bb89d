"""Pixels against Pillow's own resize: the same code on rows and columns apart, difference 0."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.runtime.inputs import bicubic
from vlmedge.runtime.inputs.bicubic import resize_bicubic, resize_in_pieces


def make_noise(height, width, seed=0):
    """Coarse and fine noise with full contrast: overshoot of the filter must be clipped alike."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    fine[: height // 2] = rng.integers(0, 256, (height // 2, width, 3), dtype=np.uint8)
    return fine


def pillow_resize(image, height, width):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 7),
    st.sampled_from([1, 28]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_threads_change_no_bit_of_the_resize(
    height, width, rows, columns, num_threads, step, as_array
):
    image = make_noise(height, width)
    resized = np.zeros((rows, columns, 3), np.uint8)
    starts = []

    def write(piece, top, left):
        starts.extend((top, left))
        resized[top : top + piece.shape[0], left : left + piece.shape[1]] = piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bicubic, "MIN_THREADED_PIXELS", 0)
        source = image if as_array else Image.fromarray(image)
        resize_in_pieces(source, rows, columns, write, step=step, num_threads=num_threads)
    assert np.array_equal(resized, pillow_resize(image, rows, columns))
    assert all(start % step == 0 for start in starts)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1080, 1920), (728, 1316)),  # halves fall on whole rows
        ((1079, 1917), (728, 1316)),  # they don't: single precision boxes would be off here
        ((427, 640), (420, 644)),
        ((101, 4999), (112, 5012)),
        ((2999, 517), (1316, 224)),  # columns first in Pillow 13
        ((1400, 900), (500, 1400)),
    ],
)
def test_large_pictures_are_resized_in_threads_without_a_changed_bit(old, new):
    image = make_noise(*old)
    assert np.array_equal(resize_bicubic(image, *new, num_threads=3), pillow_resize(image, *new))


def test_rows_with_gaps_in_memory_resize_like_others():
    image = make_noise(200, 300)[::2, ::-1]
    assert np.array_equal(resize_bicubic(image, 56, 84), pillow_resize(image, 56, 84))


def test_an_error_in_a_thread_reaches_the_caller():
    def write(piece, top, left):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        resize_in_pieces(make_noise(800, 800), 700, 700, write, num_threads=2)


def test_the_installed_pillow_keeps_a_known_order_of_passes():
    assert bicubic.find_pass_order() in bicubic.PASS_ORDERS


@given(st.tuples(*[st.integers(2, 160)] * 4))
@settings(max_examples=80, deadline=None)
def test_the_order_found_on_probes_holds_for_other_sizes(sizes):
    assert bicubic.order_fits(bicubic.Sizes(*sizes), bicubic.find_pass_order())


def test_the_probes_tell_the_known_orders_apart():
    for first, second in itertools.combinations(bicubic.PASS_ORDERS, 2):
        assert any(first(sizes) != second(sizes) for sizes in bicubic.PROBES)


def test_under_an_unknown_order_pictures_are_resized_whole():
    image, pieces = make_noise(800, 800), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bicubic, "find_pass_order", lambda: None)
        resize_in_pieces(image, 700, 600, lambda *piece: pieces.append(piece), num_threads=4)
    assert len(pieces) == 1
    assert np.array_equal(pieces[0][0], pillow_resize(image, 700, 600))
