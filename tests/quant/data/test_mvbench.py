import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmedge.quant.data.mvbench import FOLDERS, pick_frames
from vlmedge.quant.data.open_data import open_data

ROW = {
    "video": "a.mp4",
    "question": "What happens?",
    "candidates": ["it falls", "it stands"],
    "answer": "it stands",
}


def write(root, task, *rows):
    (root / "json").mkdir(exist_ok=True)
    (root / "json" / f"{task}.json").write_text(json.dumps(rows))


def draw(folder, num_frames):
    folder.mkdir(parents=True)
    for i in range(1, num_frames + 1):
        Image.new("RGB", (40, 30)).save(folder / f"{i:05}.jpg")


def list_frames(example):
    video = example.messages[0]["content"][0]["video"]
    return [int(path.rpartition("/")[2].partition(".")[0]) for path in video]


def test_a_question_has_frames_of_its_task_s_folder_and_lettered_choices(tmp_path):
    write(tmp_path, "action_sequence", ROW)
    write(tmp_path, "action_localization", ROW)
    draw(tmp_path / "video/star/Charades_v1_480/a", 16)
    draw(tmp_path / "video/sta/sta_video/a", 8)
    by_id = {example.id: example for example in open_data(f"mvbench:{tmp_path}").examples}
    assert by_id.keys() == {"action_sequence/0", "action_localization/0"}
    example = by_id["action_sequence/0"]
    # eight parts of 15 / 8 frames: 0.94, 2.94, 4.94, ... counted from 0, files from 1
    assert list_frames(example) == [1, 3, 5, 7, 9, 10, 12, 14]
    assert (example.answers, example.choices) == (("B",), ("it falls", "it stands"))
    assert (example.task, example.metric) == ("mvbench", "multiple_choice")
    text = example.messages[0]["content"][1]["text"]
    assert text.startswith("What happens?\nA. it falls\nB. it stands\n")
    star = example.messages[0]["content"][0]["video"]
    assert all("Charades_v1_480" in path for path in star)


def test_a_part_of_a_video_is_found_by_the_rate_in_its_path(tmp_path):
    write(tmp_path, "episodic_reasoning", ROW | {"video": "friends_s01", "start": 2.0, "end": 6.0})
    draw(tmp_path / "video/tvqa/frames_fps3_hq/friends_s01", 30)
    (example,) = open_data(f"mvbench:{tmp_path}").examples
    # seconds 2 to 6 at 3 a second: frames 6 to 18, eight parts of 1.5
    assert list_frames(example) == [7 + i for i in (0, 2, 3, 4, 6, 8, 9, 10)]


@given(
    st.integers(1, 400), st.floats(0, 100), st.floats(0, 100), st.sampled_from([None, 3.0, 25.0])
)
def test_picked_frames_are_in_the_clip_and_in_order(num_frames, start, end, rate):
    frames = pick_frames(num_frames, start, end, rate)
    assert len(frames) == 8
    assert frames == sorted(frames)
    assert all(0 <= frame < num_frames for frame in frames)


def test_a_video_without_frames_is_skipped_on_request_only(tmp_path):
    write(tmp_path, "moving_count", ROW, ROW | {"video": "b.mp4"})
    draw(tmp_path / "video/clevrer/video_validation/b", 3)
    with pytest.raises(ValueError, match=r"moving_count\.json entry 0: .*clevrer/a is missing"):
        open_data(f"mvbench:{tmp_path}")
    data = open_data(f"mvbench:{tmp_path}", skip_bad=True)
    assert [example.id for example in data.examples] == ["moving_count/1"]
    assert list_frames(data.examples[0]) == sorted(list_frames(data.examples[0]))
    assert set(data.skipped) == {"moving_count/0"}


def test_frames_in_two_places_are_an_error(tmp_path):
    write(tmp_path, "moving_count", ROW)
    draw(tmp_path / "video/clevrer/x/a", 3)
    draw(tmp_path / "video/clevrer/y/a", 3)
    with pytest.raises(ValueError, match="frames of a are in"):
        open_data(f"mvbench:{tmp_path}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "is no object with answer, candidates, question, video"),
        ({"video": "a", "question": "?"}, "has no answer, candidates"),
        (ROW | {"answer": "else"}, "answer 'else', which is no candidate"),
        (ROW | {"candidates": "it stands"}, "values that are no texts"),
        (ROW | {"video": 3}, "values that are no texts"),
        (ROW | {"start": "soon"}, "start 'soon', needed seconds"),
        (ROW | {"end": -1}, "end -1, needed seconds"),
        (ROW | {"end": 1e300}, "needed seconds"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path, row, message):
    write(tmp_path, "moving_count", ROW, row)
    with pytest.raises(ValueError, match=f"entry 1.*{message}"):
        open_data(f"mvbench:{tmp_path}")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no json/TASK\.json of MVBench"):
        open_data(f"mvbench:{tmp_path}")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "moving_count.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no list of questions"):
        open_data(f"mvbench:{tmp_path}")


def test_there_are_the_twenty_tasks_of_the_paper():
    assert len(FOLDERS) == 20
