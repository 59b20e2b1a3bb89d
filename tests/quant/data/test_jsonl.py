import base64
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.quant.data import jsonl as data_jsonl
from vlmedge.quant.data.jsonl import read_json_list, read_jsonl
from vlmedge.quant.data.open_data import open_data
from vlmedge.runtime.inputs import messages
from vlmedge.runtime.inputs.messages import read_messages


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    (tmp_path / "clip").mkdir()
    for i in (10, 9, 1):  # 10 after 9: names are ordered by number
        Image.new("RGB", (30, 30), (i, 0, 0)).save(tmp_path / "clip" / f"f{i}.png")
    return tmp_path


def write(folder, *lines, name="data.jsonl"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text + "\n", encoding="utf-8")
    return folder / name


def read_one(folder, line):
    return open_data(str(write(folder, line))).examples[0]


def test_the_short_form_is_one_user_s_message_with_the_picture_first(folder):
    line = {"image": "red.png", "question": "Which?", "answer": "red", "task": "colors"}
    example = read_one(folder, line)
    picture = {"type": "image", "image": str(folder / "red.png")}
    text = {"type": "text", "text": "Which?"}
    assert example.messages == ({"role": "user", "content": [picture, text]},)
    assert (example.id, example.answers, example.task) == ("1", ("red",), "colors")
    assert (example.metric, example.choices) == ("exact_match", ())


def test_several_pictures_keep_their_order(folder):
    Image.new("L", (20, 20)).save(folder / "b.png")
    example = read_one(folder, {"images": ["red.png", "b.png"], "question": "?"})
    names = [part.get("image") for part in example.messages[0]["content"]]
    assert names == [str(folder / "red.png"), str(folder / "b.png"), None]


@pytest.mark.parametrize("video", ["clip", ["clip/f1.png", "clip/f9.png", "clip/f10.png"]])
@pytest.mark.parametrize("key", ["video", "frames"])
def test_a_clip_is_a_list_of_frames_or_a_folder_of_them(folder, key, video):
    example = read_one(folder, {key: video, "question": "?"})
    frames = [str(folder / "clip" / f"f{i}.png") for i in (1, 9, 10)]
    assert example.messages[0]["content"][0] == {"type": "video", "video": frames}
    read_messages(example.messages)


def test_messages_are_kept_with_their_paths_made_absolute(folder):
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "image", "path": "red.png", "max_pixels": 3136},
        {"type": "image_url", "image_url": {"url": "red.png"}},
        {"type": "video", "video": "clip"},
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    example = read_one(folder, {"messages": messages, "answers": ["a", "b"], "id": "x/1"})
    assert example.messages[0] == messages[0]
    text, one, two, clip = example.messages[1]["content"]
    red = str(folder / "red.png")
    assert text == content[0]
    assert one == {"type": "image", "image": red, "max_pixels": 3136}
    assert two == {"type": "image", "image": red}
    assert len(clip["video"]) == 3
    assert (example.id, example.answers) == ("x/1", ("a", "b"))


def test_data_urls_are_decoded_once(folder):
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    example = read_one(folder, {"image": url, "question": "?"})
    assert example.messages[0]["content"][0]["image"] == file.getvalue()


def test_choices_are_listed_under_the_question(folder):
    line = {"image": "red.png", "question": "Which?", "choices": ["red", "blue"], "answer": "A"}
    example = read_one(folder, line)
    text = example.messages[0]["content"][1]["text"]
    assert text.splitlines()[:3] == ["Which?", "A. red", "B. blue"]
    assert (example.metric, example.choices) == ("multiple_choice", ("red", "blue"))


def test_a_json_list_reads_like_the_lines(folder):
    lines = [{"picture": "red.png", "question": "?", "answer": "a"}, {"question": "Hello?"}]
    (folder / "list.json").write_text(json.dumps(lines))
    one = open_data(str(folder / "list.json"))
    two = open_data(str(write(folder, *lines)))
    assert one.examples == two.examples
    assert one.sha256 == two.sha256


def test_the_pictures_of_the_sample_can_be_read(request):
    path = request.config.rootpath / "samples" / "pictures" / "questions.json"
    examples = open_data(str(path)).examples
    assert len(examples) == len(json.loads(path.read_text()))
    assert {example.task for example in examples} >= {"receipt", "clip"}


def test_a_byte_order_mark_and_empty_lines_are_passed_over(folder):
    text = '\ufeff{"question": "one"}\n\n  \n{"question": "two"}\n'
    (folder / "data.jsonl").write_text(text, encoding="utf-8")
    assert [entry.id for entry in read_jsonl(folder / "data.jsonl").entries] == ["1", "4"]


GOOD = {"image": "red.png", "question": "?", "answer": "x"}


def test_an_error_stays_one_line_whatever_the_file_holds(folder):
    (folder / "a\nb").mkdir()
    with pytest.raises(ValueError, match=r"a b/data\.jsonl line 1 has an empty id"):
        open_data(str(write(folder / "a\nb", GOOD | {"id": ""})))


def test_keys_that_nobody_reads_are_counted_and_told(folder):
    rows = [GOOD | {"anwser": "x"}, GOOD | {"anwser": "y", "source\n": 1}, GOOD]
    data = open_data(str(write(folder, *rows)))
    assert len(data.examples) == 3
    (notice,) = data.notices
    assert "'anwser' in 2 rows" in notice
    assert "'source\\n' in 1 rows" in notice


def test_null_counts_as_absent_and_a_number_as_its_text(folder):
    row = GOOD | {"answer": None, "answers": [3, 0.5, "x"], "task": None, "id": 7, "messages": None}
    (example,) = open_data(str(write(folder, row))).examples
    assert (example.id, example.task, example.answers) == ("7", "", ("3", "0.5", "x"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "red.png", "quest', "is not JSON, or was cut off"),
        ('{"question": NaN}', "it holds NaN"),
        ('{"question": "a", "question": "b"}', "the key 'question' twice"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", "is of type list, needed an object"),
        ({}, "neither messages nor a question"),
        ({"image": "red.png"}, "neither messages nor a question"),
        (GOOD | {"question": 3}, "question of type number, needed a string"),
        (GOOD | {"answer": True}, "answer of type boolean, needed a string"),
        (GOOD | {"answers": ["x"]}, "answer and answers"),
        ({"question": "?", "answers": "x"}, "answers of type string, needed a list"),
        ({"question": "?", "answers": ["x", None]}, r"answers\[1\] of type null"),
        (GOOD | {"images": ["red.png"]}, "has image and images"),
        (GOOD | {"image": ["red.png"]}, "image of type list, needed a path"),
        ({"question": "?", "images": "red.png"}, "images of type string, needed a list"),
        ({"question": "?", "images": []}, "no images: the list is empty"),
        ({"question": "?", "video": []}, "no video: the list is empty"),
        ({"question": "?", "video": {"a": 1}}, "video of type object, needed a list"),
        (GOOD | {"image": "https://x.org/a.png"}, "is on the network"),
        (GOOD | {"image": "data:oops"}, "a data URL reads"),
        (GOOD | {"metric": "exact"}, "metric 'exact', known are exact_match"),
        (GOOD | {"metric": "vqa_accuracy"}, "1 answers, vqa_accuracy needs 4"),
        (GOOD | {"id": ""}, "empty id"),
        (GOOD | {"id": [7]}, "id of type list"),
        (GOOD | {"task": 3}, "task of type number"),
        (GOOD | {"choices": ["x"]}, "1 choices, needed 2 to 26"),
        (GOOD | {"choices": ["x", "y"]}, "answer 'x', needed a letter of AB"),
        ({"messages": [], "question": "?"}, "messages and question: give one"),
        ({"messages": []}, "there are no messages"),
        ({"messages": "hi"}, "needed a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "the role 'robot'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no question of a user"),
        ({"messages": [{"role": "system", "content": "x"}]}, "the last message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]},
            "a picture of type number",
        ),
        ({"question": "\ud800"}, "no valid Unicode"),
    ],
)
def test_a_malformed_line_is_named_with_what_is_wrong(folder, line, message):
    path = write(folder, {"question": "good"}, line)
    with pytest.raises(ValueError, match=message) as caught:
        open_data(str(path))
    assert str(caught.value).startswith(f"{path} line 2")
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused(folder):
    (folder / "data.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"data.jsonl line 1 is not UTF-8"):
        read_jsonl(folder / "data.jsonl")


def test_absurd_sizes_are_refused_before_they_are_parsed(folder, monkeypatch):
    monkeypatch.setattr(data_jsonl, "MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="line 1 is over 100 bytes"):
        read_jsonl(write(folder, {"question": "?" * 100}))
    monkeypatch.setattr(data_jsonl, "MAX_LIST_BYTES", 100)
    with pytest.raises(ValueError, match="is over 100 bytes"):
        read_json_list(write(folder, [{"question": "?" * 100}]))


def test_an_empty_file_and_a_missing_one_are_errors(folder):
    with pytest.raises(ValueError, match="has no examples: real ones are needed"):
        read_jsonl(write(folder, ""))
    with pytest.raises(ValueError, match=r"can't read .*: No such file"):
        read_jsonl(folder / "none.jsonl")
    with pytest.raises(ValueError, match="is of type object, needed a list"):
        read_json_list(write(folder, {"question": "?"}))


def test_one_id_twice_names_both_places(folder):
    path = write(folder, {"question": "a", "id": "2"}, {"question": "b"})
    with pytest.raises(ValueError, match=r"line 2 has the id '2' of .* line 1"):
        read_jsonl(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(data_jsonl._KEYS)) | st.text(max_size=4)


@settings(deadline=None, max_examples=60)
@given(lines=st.lists(st.dictionaries(KEYS, VALUES, max_size=5) | VALUES, max_size=3))
def test_whatever_json_a_line_holds_it_is_read_or_refused(lines, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    try:
        examples = open_data(str(path), skip_bad=True).examples
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(read_messages(example.messages) for example in examples)


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=200))
def test_whatever_bytes_a_file_holds_it_is_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "data.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"data\.jsonl"):
        open_data(str(path))


@pytest.mark.parametrize(
    "line",
    [
        {"question": "x" * 101},
        {"question": "x", "answer": "x" * 101},
        {"question": "x", "answers": ["x", "x" * 101]},
        {"question": "x", "choices": ["x", "x" * 101]},
        {"messages": [{"role": "user", "content": "x" * 101}]},
        {"messages": [{"role": "user", "content": "x" * 51}] * 2},
    ],
)
def test_endless_text_is_refused_by_its_line(folder, monkeypatch, line):
    monkeypatch.setattr(data_jsonl, "MAX_TEXT_CHARS", 100)
    monkeypatch.setattr(messages, "MAX_TEXT_CHARS", 100)
    with pytest.raises(ValueError, match=r"data.jsonl line 2.* characters.*at most 100"):
        open_data(str(write(folder, {"question": "x" * 100}, line)))
