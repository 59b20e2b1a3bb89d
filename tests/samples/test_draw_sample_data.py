import json
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
from sample.tasks import TASKS, make_example, pick_shape

SCRIPT = Path(__file__).parents[2] / "scripts" / "draw_sample_data.py"


def draw(out, *options):
    command = [sys.executable, SCRIPT, out, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_lines(folder):
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "held-out"
    done = draw(folder, "--split", "held-out", "--num-examples", "12")
    assert done.returncode == 0, done.stderr
    return folder


def test_every_task_has_as_many_examples_as_asked_for_under_stable_names(held_out):
    ids = [line["id"] for line in read_lines(held_out)]
    # groups of ten from 1000 on, as eval_sample.py asks about them
    places = [(1000, place) for place in range(10)] + [(1001, 0), (1001, 1)]
    assert ids == [f"{task}/{group}/{place}" for task in TASKS for group, place in places]


def test_a_line_is_the_example_that_eval_sample_asks_about(held_out):
    for line in read_lines(held_out):
        task, group, place = line["id"].split("/")
        shape = pick_shape(task, Random(f"held-out shape/{task}/{group}"))
        example = make_example("held-out", shape, int(group), int(place))
        assert (line["question"], line["answer"]) == (example.question, example.answer)
        assert (line["task"], line["metric"]) == (task, "exact_match")
        names = line["video"] if "video" in line else [line["image"]]
        assert ("video" in line) == example.is_clip
        for name, frame in zip(names, example.frames, strict=True):
            assert np.array_equal(np.asarray(Image.open(held_out / name)), np.asarray(frame))


def test_splits_share_no_picture(held_out, tmp_path):
    options = ("--split", "calibration", "--num-examples", "12", "--tasks", "number", "clip")
    assert draw(tmp_path / "calibration", *options).returncode == 0
    folders = (held_out, tmp_path / "calibration")
    one, two = ({path.read_bytes() for path in folder.rglob("*.png")} for folder in folders)
    assert one
    assert two
    assert not one & two


def test_calibration_examples_each_have_a_grid_of_their_own(tmp_path):
    options = ("--split", "calibration", "--num-examples", "12", "--tasks", "receipt")
    assert draw(tmp_path / "out", *options).returncode == 0
    sizes = {Image.open(path).size for path in (tmp_path / "out").rglob("*.png")}
    assert len(sizes) > 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "train", "--num-examples", "1"), "invalid choice: 'train'"),
        (("--split", "held-out", "--num-examples", "0"), "needed at least 1"),
    ],
)
def test_a_wrong_option_draws_nothing(options, message, tmp_path):
    done = draw(tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_old_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    done = draw(tmp_path / "out", "--split", "held-out", "--num-examples", "1")
    assert done.returncode == 2
    assert "exists" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_drawing_loads_no_torch():
    code = "import draw_sample_data, sys; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_fails_half_way_leaves_nothing(monkeypatch, tmp_path):
    import draw_sample_data as script

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(script, "write_example", fail)
    monkeypatch.setattr(
        sys, "argv", ["x", str(tmp_path / "out"), "--split", "held-out", "--num-examples", "1"]
    )
    with pytest.raises(OSError, match="no space left"):
        script.main()
    assert not list(tmp_path.iterdir())
