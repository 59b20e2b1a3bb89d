import os
import random

import pytest
from PIL import Image

from vlmedge.quant.data import pictures
from vlmedge.quant.data.examples import Example
from vlmedge.quant.data.folder import read_folder
from vlmedge.quant.data.pictures import get_frames, list_parts, settle
from vlmedge.quant.data.prompts import make_messages
from vlmedge.runtime.cli.question import list_frames


def draw(path, size=(40, 30)):
    Image.new("RGB", size).save(path)
    return str(path)


def ask(name, images=(), frames=()):
    return Example(name, make_messages("?", images, frames))


def settle_one(example, *, skip_bad=True):
    return settle([example], ["here"], skip_bad=skip_bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: [None], "there is no picture"),
        (lambda p: [b"no picture"], "no picture of a known format"),
        (lambda p: [str(p / "none.png")], "none.png is missing"),
        (lambda p: [str(p)], "it is a directory, a regular file is needed"),
        (lambda p: [draw(p / "long.png", (1000, 4))], "one side over 200 times the other"),
        (lambda p: [str(p / "a\0b.png")], "a.b.png is missing|can't read"),
    ],
)
def test_a_bad_picture_fails_its_example_alone(tmp_path, make, message):
    good, bad = ask("good", [draw(tmp_path / "a.png")]), ask("bad", make(tmp_path))
    settled = settle([bad, good], ["one", "two"], skip_bad=True)
    assert [example.id for example in settled.examples] == ["good"]
    with pytest.raises(ValueError, match=message):
        settle([good, bad], ["two", "one"], skip_bad=False)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert (
        "it is a pipe, a regular file is needed"
        in settle_one(ask("1", [str(tmp_path / "pipe.png")])).skipped["1"]
    )


def test_an_absurdly_large_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 10)
    settled = settle_one(ask("1", [draw(tmp_path / "a.png")]))
    assert "has over 10 bytes" in settled.skipped["1"]


def test_frames_of_a_clip_have_one_size(tmp_path):
    frames = [draw(tmp_path / "0.png"), draw(tmp_path / "1.png", (30, 30))]
    assert (
        "frame 1 of a clip is 30x30, frame 0 is 40x30"
        in settle_one(ask("1", (), frames)).skipped["1"]
    )
    assert settle_one(ask("1", frames)).examples  # as pictures they may differ


def test_a_clip_is_no_longer_than_the_runtime_takes(tmp_path):
    frames = [draw(tmp_path / "0.png")] * 769
    assert "a clip has 769 frames, at most 768" in settle_one(ask("1", (), frames)).skipped["1"]


def test_a_folder_of_a_clip_needs_frames_and_a_video_file_is_refused_with_advice(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "v.mp4").write_bytes(b"\0" * 100)
    empty = settle_one(ask("1", (), [str(tmp_path / "empty")]))
    assert "is a folder without pictures" in empty.skipped["1"]
    video = settle_one(ask("1", (), [str(tmp_path / "v.mp4")]))
    assert "is a video file: cut it into pictures" in video.skipped["1"]


def test_examples_in_hand_stay_as_they_were(tmp_path):
    frame = draw(tmp_path / "0.png")
    example = ask("1", (), [str(tmp_path)])
    assert settle_one(example).examples[0].messages[0]["content"][0]["video"] == [frame]
    assert example.messages[0]["content"][0]["video"] == [str(tmp_path)]


def test_a_picture_is_opened_once_however_many_ask_about_it(tmp_path, monkeypatch):
    path, opened = draw(tmp_path / "a.png"), []
    real = pictures.open_image
    monkeypatch.setattr(pictures, "open_image", lambda s: (opened.append(s), real(s))[1])
    settle([ask(str(i), [path, path]) for i in range(5)], ["here"] * 5, skip_bad=False)
    assert opened == [path]


def test_bytes_and_a_file_of_the_same_bytes_have_the_same_hash(tmp_path):
    path = draw(tmp_path / "a.png")
    one = settle_one(ask("1", [path])).sha256
    two = settle_one(ask("1", [(tmp_path / "a.png").read_bytes()])).sha256
    assert one == two


def test_the_hash_depends_on_the_order(tmp_path):
    one, two = ask("1", [draw(tmp_path / "a.png")]), ask("2")
    forth = settle([one, two], ["", ""], skip_bad=False).sha256
    assert forth != settle([two, one], ["", ""], skip_bad=False).sha256


def test_check_and_run_take_the_same_frames_of_a_folder_in_the_same_order(tmp_path):
    pictures_of_a_clip = ["1.heic", "2.TIFF", "3.jp2", "9.ppm", "10.png", "11.avif"]
    for name in (*random.Random(0).sample(pictures_of_a_clip, 6), "notes.txt", "._1.png"):
        draw(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    settled = settle_one(ask("1", (), [str(tmp_path)]), skip_bad=False).examples[0]
    frames = get_frames(next(list_parts(settled)))
    assert frames == [str(tmp_path / name) for name in pictures_of_a_clip]
    assert frames == [str(path) for path in list_frames([tmp_path])]
    assert [entry.id for entry in read_folder(tmp_path).entries] == pictures_of_a_clip
