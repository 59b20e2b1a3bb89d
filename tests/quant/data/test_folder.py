import pytest
from PIL import Image

from vlmedge.quant.data.folder import QUESTIONS, read_folder
from vlmedge.quant.data.open_data import open_data
from vlmedge.runtime.inputs.messages import list_media, read_messages


def draw(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / name)


def test_every_picture_of_the_folder_and_below_gets_a_question_and_no_answer(tmp_path):
    draw(tmp_path, "10.jpg", "9.png", "deep/er/a.PNG", "b.webp")
    (tmp_path / "README.md").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    examples = open_data(str(tmp_path)).examples
    assert [example.id for example in examples] == ["9.png", "10.jpg", "b.webp", "deep/er/a.PNG"]
    for i, example in enumerate(examples):
        assert example.answers == ()
        *_, text = example.messages[0]["content"]
        assert text["text"] == QUESTIONS[i]
        assert list_media(read_messages(example.messages))[0].sources[0].endswith(example.id)


def test_the_questions_come_in_turn(tmp_path):
    draw(tmp_path, *(f"{i}.png" for i in range(len(QUESTIONS) + 1)))
    texts = [e.messages[0]["content"][1]["text"] for e in open_data(str(tmp_path)).examples]
    assert texts == [*QUESTIONS, QUESTIONS[0]]


def test_a_broken_picture_is_named(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"b\.png is no picture"):
        open_data(str(tmp_path))
    assert set(open_data(str(tmp_path), skip_bad=True).skipped) == {"b.png"}


def test_a_folder_without_pictures_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no pictures"):
        read_folder(tmp_path)
