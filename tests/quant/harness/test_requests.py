"""What harnesses ask -> what the runtime is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmedge.quant.harness.requests import (
    add_system,
    flatten,
    make_options,
    make_turn,
    make_visual,
    measure_loss,
    pick_frames,
    read_clip,
)
from vlmedge.runtime.inputs.messages import read_messages
from vlmedge.runtime.options import GenerationOptions

PICTURE = Image.new("RGB", (28, 28))


def no_video(path):
    raise AssertionError(f"{path} is no video")


def test_keywords_of_most_tasks_are_greedy_options():
    """As in docvqa, chartqa and mmmu of lmms-eval 0.7.3."""
    asked = {"max_new_tokens": 32, "temperature": 0, "do_sample": False, "top_p": None}
    asked |= {"num_beams": 1, "until": ["\n\n"], "image_aspect_ratio": "original"}
    assert make_options(asked, 128) == GenerationOptions(
        max_new_tokens=32, do_sample=False, stop=("\n\n",)
    )


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.0}, {"do_sample": True}, {"top_p": 0.9}])
def test_without_a_temperature_answers_are_greedy_whatever_the_checkpoint_says(asked):
    assert make_options(asked, 7) == GenerationOptions(max_new_tokens=7, do_sample=False)


def test_a_temperature_samples():
    asked = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3, "until": "END"}
    assert make_options(asked, 7) == GenerationOptions(
        max_new_tokens=7, temperature=0.7, top_p=0.9, top_k=5, seed=3, stop=("END",)
    )
    assert make_options(asked | {"do_sample": False}, 7).temperature is None
    limits = {"temperature": 0.7, "min_p": 0.1, "typical_p": 0.9}
    assert make_options(limits, 7) == GenerationOptions(max_new_tokens=7, **limits)


@pytest.mark.parametrize("asked", [{"min_new_tokens": 3}, {"no_repeat_ngram_size": 2}])
def test_what_greedy_answers_follow_too_is_passed_on(asked):
    needed = GenerationOptions(max_new_tokens=7, do_sample=False, **asked)
    assert make_options(asked, 7) == needed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_beams": 4}, "num_beams 4"),
        ({"n": 2}, "n 2"),
        ({"skip_special_tokens": False}, "skip_special_tokens False"),
        ({"max_tokens": 4}, "asks for max_tokens"),
        ({"until": [1]}, "needed strings"),
    ],
)
def test_what_the_runtime_cannot_do_is_an_error(asked, message):
    with pytest.raises(ValueError, match=message):
        make_options(asked, 7)


def test_pictures_stand_before_the_question_in_their_order():
    second = Image.new("RGB", (56, 28))
    turn = make_turn([[PICTURE], None, [second]], "What?", no_video, max_pixels=784)
    assert turn["role"] == "user"
    assert [part["type"] for part in turn["content"]] == ["image", "image", "text"]
    assert turn["content"][0]["image"] is PICTURE
    assert turn["content"][1]["image"] is second
    assert turn["content"][0]["max_pixels"] == 784
    read_messages([turn])


def test_a_video_file_becomes_its_frames(tmp_path):
    asked = []

    def read_frames(path):
        asked.append(path)
        return [PICTURE, PICTURE]

    part = make_visual(str(tmp_path / "clip.MP4"), read_frames)
    assert part == {"type": "video", "video": [PICTURE, PICTURE]}
    assert asked == [tmp_path / "clip.MP4"]
    assert make_visual("a.png", no_video) == {"type": "image", "image": "a.png"}
    assert make_visual({"video": [PICTURE]}, no_video) == {"type": "video", "video": [PICTURE]}


@pytest.mark.parametrize("visual", [{"array": [0.1], "sampling_rate": 16000}, 3])
def test_sound_is_refused(visual):
    with pytest.raises(ValueError, match="needed a picture, a path or a clip's frames"):
        make_visual(visual, no_video)


def test_flatten_takes_lists_apart_and_nothing_else():
    assert flatten(None) == []
    assert flatten([[1, [2, None]], (3,), "ab"]) == [1, 2, 3, "ab"]


def test_a_system_prompt_is_put_before_messages_that_have_none():
    user = {"role": "user", "content": "hi"}
    own = {"role": "system", "content": "own"}
    assert add_system([user], "be brief") == [{"role": "system", "content": "be brief"}, user]
    assert add_system([own, user], "be brief") == [own, user]
    assert add_system([user], None) == [user]


@given(st.integers(0, 500), st.integers(1, 64))
def test_frames_are_spread_from_first_to_last(count, wanted):
    indices = pick_frames(count, wanted)
    assert len(indices) <= min(count, wanted)
    assert len(indices) >= min(count, wanted) - 1
    assert indices == sorted(set(indices))
    assert all(type(index) is int for index in indices)
    if len(indices) > 1:
        assert len(indices) % 2 == 0
        assert (indices[0], indices[-1]) == (0, count - 1)
        gaps = np.diff(indices)
        assert gaps.max() - gaps.min() <= 1


@pytest.fixture
def clip(tmp_path):
    """24 frames, each of a gray level of its own: 10 a step."""
    av = pytest.importorskip("av", reason="PyAV (extra: video) is not installed")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        for index in range(24):
            array = np.full((48, 64, 3), 10 * index, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_read_clip_takes_the_frames_it_says(clip):
    frames = read_clip(clip, 4)
    levels = [float(np.asarray(frame).mean()) for frame in frames]
    assert [frame.size for frame in frames] == [(64, 48)] * 4
    assert levels == pytest.approx([0, 80, 150, 230], abs=4)  # frames 0, 8, 15 and 23
    assert len(read_clip(clip, 100)) == 24


def test_a_file_that_is_no_video_is_an_error(tmp_path):
    pytest.importorskip("av", reason="PyAV (extra: video) is not installed")
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"clip\.mp4 can't be read as a video"):
        read_clip(path, 4)
    with pytest.raises(ValueError, match="num_frames is 0"):
        read_clip(path, 0)


def test_the_loss_is_the_mean_over_the_tokens():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.7, 0.2]])
    logits = np.log(probabilities).astype(np.float32) + 3
    loss, is_greedy = measure_loss(logits, [0, 1])
    assert loss == pytest.approx(-np.log(0.5 * 0.7) / 2, abs=1e-6)
    assert is_greedy
    loss, is_greedy = measure_loss(logits, [0, 2])
    assert loss == pytest.approx(-np.log(0.5 * 0.2) / 2, abs=1e-6)
    assert not is_greedy
