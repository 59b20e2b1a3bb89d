"""A clip's frames are opened one by one; what becomes of them is tested with the patches."""

import threading

import numpy as np
import pytest
from PIL import Image

from vlmedge.runtime.bundle.manifest import PixelBudget, VisionSpec
from vlmedge.runtime.errors import ImageError
from vlmedge.runtime.inputs import asked_size
from vlmedge.runtime.inputs.patches import make_video_input
from vlmedge.runtime.inputs.video import Frames

PIXELS = PixelBudget(3136, 200704, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VISION = VisionSpec(32, 1280, 16, 14, 2, 2)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(path)
    return paths


def test_frames_of_files_become_the_patches_of_their_arrays(files):
    frames = Frames(files)
    arrays = [np.asarray(Image.open(path)) for path in files]
    assert len(frames) == 5
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(frames, arrays, strict=True))
    made = make_video_input(frames, PIXELS, VISION)
    expected = make_video_input(arrays, PIXELS, VISION)
    assert np.array_equal(made.pixel_values, expected.pixel_values)
    assert np.array_equal(np.asarray(frames[1:3][1]), arrays[2])


def test_no_more_frames_are_open_at_once_than_there_are_threads(files, monkeypatch):
    opened, alive, peak, lock = [], set(), [0], threading.Lock()

    class Probe(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def open_image(source):
        image = np.asarray(Image.open(source)).view(Probe)
        with lock:
            opened.append(source)
            alive.add(id(image))
            peak[0] = max(peak[0], len(alive))
        return image

    monkeypatch.setattr(asked_size, "open_image", open_image)
    monkeypatch.setattr("vlmedge.runtime.inputs.patches.count_cpus", lambda: 1)
    make_video_input(Frames(files * 4), PIXELS, VISION)
    assert sorted(opened) == sorted(files * 4), "each is opened once"
    assert peak[0] <= 4, "the first, the one at work, the one before it"


def test_a_broken_frame_is_an_error_of_the_clip(files):
    files[3].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"3\.png is no picture"):
        make_video_input(Frames(files), PIXELS, VISION)
