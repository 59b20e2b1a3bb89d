import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.data.open_data import open_data


def draw(path, level=0, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures with a line each, of two tasks."""
    folder = tmp_path / "set"
    lines = []
    for i in range(12):
        draw(folder / "pictures" / f"{i}.png", i)
        task = "odd" if i % 2 else "even"
        line = {"image": f"pictures/{i}.png", "question": "?", "answer": str(i), "task": task}
        lines.append(json.dumps(line | {"id": f"{task}/{i}"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder


def list_ids(folder, **options):
    return [example.id for example in open_data(str(folder), **options).examples]


def test_the_order_is_the_source_s(folder):
    assert list_ids(folder) == [f"{'odd' if i % 2 else 'even'}/{i}" for i in range(12)]


def test_a_choice_is_fixed_by_its_seed_and_grows_with_its_limit(folder):
    everything = list_ids(folder)
    few, more = list_ids(folder, limit=4, seed=1), list_ids(folder, limit=8, seed=1)
    assert few == list_ids(folder, limit=4, seed=1)
    assert few != list_ids(folder, limit=4, seed=2)
    assert set(few) < set(more) < set(everything)
    assert more == [name for name in everything if name in more]  # order kept
    assert list_ids(folder, limit=100) == everything


def test_one_task_can_be_taken(folder):
    assert list_ids(folder, task="odd") == [f"odd/{i}" for i in range(1, 12, 2)]
    with pytest.raises(ValueError, match="no examples of the task 'od', it has even, odd"):
        open_data(str(folder), task="od")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(folder, limit):
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        open_data(str(folder), limit=limit)


def test_the_hash_is_of_the_content_not_of_the_place(folder, tmp_path):
    before = open_data(str(folder))
    folder.rename(tmp_path / "elsewhere")
    after = open_data(str(tmp_path / "elsewhere" / "data.jsonl"))
    assert before.sha256 == after.sha256
    assert (before.name, after.name) == ("data.jsonl", "data.jsonl")
    draw(tmp_path / "elsewhere" / "pictures" / "3.png", 99)
    assert open_data(str(tmp_path / "elsewhere")).sha256 != before.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"question": "!"},
        {"answer": "none"},
        {"task": "other"},
        {"id": "0"},
        {"metric": "word_match"},
    ],
)
def test_the_hash_moves_with_every_text(folder, change):
    before = open_data(str(folder)).sha256
    lines = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    lines[0] |= change
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert open_data(str(folder)).sha256 != before


def test_a_missing_or_broken_picture_is_an_error_that_names_the_line(folder):
    (folder / "pictures" / "4.png").unlink()
    with pytest.raises(ValueError, match=r"data.jsonl line 5: .*4.png is missing .*--skip-bad"):
        open_data(str(folder))
    data = (folder / "pictures" / "5.png").read_bytes()
    (folder / "pictures" / "4.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"data.jsonl line 5: .*4.png is a broken picture"):
        open_data(str(folder))


def test_bad_pictures_are_skipped_on_request_and_counted(folder):
    (folder / "pictures" / "4.png").unlink()
    (folder / "pictures" / "7.png").write_text("no picture")
    data = open_data(str(folder), skip_bad=True)
    assert len(data.examples) == 10
    assert set(data.skipped) == {"even/4", "odd/7"}
    assert "is missing" in data.skipped["even/4"]
    assert "no picture of a known format" in data.skipped["odd/7"]


def test_a_set_with_nothing_left_is_an_error(folder):
    for path in (folder / "pictures").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"none of the 12 examples of data\.jsonl can be used"):
        open_data(str(folder), skip_bad=True)


def test_there_is_never_data_that_was_not_given(tmp_path):
    for spec, message in (
        ("", "no data is given"),
        (str(tmp_path), "holds no pictures: real ones are needed"),
        (str(tmp_path / "none"), "there is no "),
        ("docvqa:", "there is no docvqa:"),
        ("squad:x", "no layout 'squad': known are docvqa"),
        ("x" * 5000, "can't read"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            open_data(spec)
        assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_names_what_is_needed(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"is no folder, .jsonl or .json file.*docvqa"):
        open_data(str(tmp_path / "a.csv"))


def test_paths_hold_in_another_working_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    example = open_data("set/data.jsonl").examples[0]
    assert os.path.isabs(example.messages[0]["content"][0]["image"])


def test_reading_lines_needs_no_pyarrow_and_no_hub(folder):
    code = (
        "import sys\n"
        "from vlmedge.quant.data.open_data import open_data\n"
        "open_data(sys.argv[1])\n"
        "print({m.partition('.')[0] for m in sys.modules} & {'pyarrow', 'huggingface_hub'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
