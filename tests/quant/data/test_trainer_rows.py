"""Rows as trainers write them, against the conversations that their documentation describes."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmedge.quant.data.jsonl import read_json_list
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.data.trainer_rows import is_trainer_row, make_long_form


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), (name[0] == "a" and "red") or "blue").save(tmp_path / name)
    (tmp_path / "clip").mkdir()
    for i in range(2):
        Image.new("RGB", (40, 30)).save(tmp_path / "clip" / f"{i}.png")
    return tmp_path


def read(folder, *rows, suffix=".jsonl", **options):
    path = folder / f"data{suffix}"
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(lines if suffix == ".jsonl" else json.dumps(rows))
    return open_data(str(path), **options)


def show(example, folder):
    """Turns in one line each: pictures as <name>, clips as <number of frames>."""
    lines = []
    for message in example.messages:
        content = message["content"]
        if not isinstance(content, str):
            pieces = []
            for part in content:
                if part["type"] == "text":
                    pieces.append(part["text"])
                elif part["type"] == "image":
                    pieces.append(f"<{part['image'].removeprefix(f'{folder}/')}>")
                else:
                    pieces.append(f"<{len(part['video'])}>")
            content = "".join(pieces)
        lines.append(f"{message['role']}: {content}")
    return lines


HUMAN, GPT = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Red."}
AGAIN = [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": 5}]
USER, ASSISTANT = {"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Red."}
ASKED = ["user: <a.png>\nWhat is it?"]
ROWS = {
    "LLaVA": ({"id": "x", "image": "a.png", "conversations": [HUMAN, GPT]}, ASKED, "Red."),
    "LLaVA, two turns": (
        {"image": "a.png", "conversations": [HUMAN, GPT, *AGAIN]},
        [*ASKED, "assistant: Red.", "user: Sure?"],
        "5",
    ),
    "LLaVA without a picture": (
        {"conversations": [{"from": "human", "value": "Is <image> a tag?"}, GPT]},
        ["user: Is <image> a tag?"],
        "Red.",
    ),
    "LLaVA, a clip": (
        {
            "video": "clip",
            "conversations": [{"from": "human", "value": "<video>\nWhat moves?"}, GPT],
        },
        ["user: <2>\nWhat moves?"],
        "Red.",
    ),
    "ShareGPT": (
        {"messages": [USER, ASSISTANT], "images": ["a.png"]},
        ["user: <a.png>?"],
        "Red.",
    ),
    "ShareGPT, system beside": (
        {"conversations": [HUMAN, GPT], "images": ["a.png"], "system": "Be short."},
        ["system: Be short.", *ASKED],
        "Red.",
    ),
    "two pictures in order": (
        {
            "messages": [{"role": "user", "content": "<image> or <image>?"}, ASSISTANT],
            "images": ["a.png", {"path": "b.png", "bytes": None}],
        },
        ["user: <a.png> or <b.png>?"],
        "Red.",
    ),
    "bare parts beside pictures": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
            ],
            "images": ["a.png"],
        },
        ["user: <a.png>?"],
        "Red.",
    ),
    "parts with pictures, the answer last": (
        {
            "messages": [
                {"role": "developer", "content": "Be short."},
                {"role": "user", "content": [{"type": "image", "image": "a.png"}]},
                ASSISTANT,
            ]
        },
        ["system: Be short.", "user: <a.png>"],
        "Red.",
    ),
    "ms-swift": (
        {"query": "<image>What?", "response": "Red.", "images": ["a.png"]},
        ["user: <a.png>What?"],
        "Red.",
    ),
    "ms-swift, no place named": (
        {"query": "What?", "response": "Red.", "images": ["a.png", "b.png"], "history": None},
        ["user: <a.png><b.png>What?"],
        "Red.",
    ),
    "ms-swift, history": (
        {
            "system": "Be short.",
            "history": [["<image>What?", "Red."]],
            "query": "Sure?",
            "response": "Yes.",
            "images": "a.png",
        },
        ["system: Be short.", "user: <a.png>What?", "assistant: Red.", "user: Sure?"],
        "Yes.",
    ),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("name", ROWS)
def test_a_trainers_row_is_the_conversation_it_describes(folder, name, suffix):
    row, turns, answer = ROWS[name]
    (example,) = read(folder, row, suffix=suffix).examples
    assert show(example, folder) == turns
    assert example.answers == (answer,)


def test_a_conversation_without_an_answer_is_read_to_calibrate_with(folder):
    (example,) = read(folder, {"image": "a.png", "conversations": [HUMAN]}).examples
    assert show(example, folder) == ASKED
    assert example.answers == ()


def test_rows_of_several_forms_may_stand_in_one_file(folder):
    own = {"image": "a.png", "question": "?", "answer": "x"}
    examples = read(folder, *(row for row, _, _ in ROWS.values()), own).examples
    assert len(examples) == len(ROWS) + 1
    assert examples[-1].answers == ("x",)


def test_paths_are_relative_to_the_media_root_where_one_is_named(folder, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    row = ROWS["LLaVA"][0]
    (lists / "d.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=r"a\.png is missing"):
        open_data(str(lists / "d.json"))
    (example,) = open_data(str(lists / "d.json"), media_root=folder).examples
    assert show(example, folder) == ASKED
    with pytest.raises(ValueError, match="is no folder"):
        open_data(str(lists / "d.json"), media_root=folder / "nowhere")
    with pytest.raises(ValueError, match=r"for \.jsonl and \.json"):
        open_data("easy-vqa", media_root=folder)


def test_one_id_for_several_rows_as_llava_has_it_is_made_different(folder):
    row = ROWS["LLaVA"][0]
    assert [example.id for example in read(folder, row, row, row).examples] == ["x", "x#2", "x#3"]


def test_keys_of_trainers_that_change_no_question_are_counted(folder):
    row = ROWS["ShareGPT"][0] | {"source": "web", "rejected_response": "Blue."}
    (notice,) = read(folder, row, row).notices
    assert "'source' in 2 rows" in notice
    assert "'rejected_response' in 2 rows" in notice


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [HUMAN, GPT]} | {"images": ["a.png", "b.png"]}, "1 places for pictures"),
        ({"conversations": [HUMAN, HUMAN, GPT], "image": "a.png"}, "2 places for pictures, 1"),
        ({"conversations": "x"}, "conversations is no list"),
        ({"conversations": []}, "has no turns"),
        ({"conversations": ["x"]}, r"conversations\[0\] is no object"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "is of 'observation'"),
        ({"conversations": [{"from": "human"}]}, "has no content"),
        ({"conversations": [GPT]}, "no question of a user"),
        ({"conversations": [HUMAN, GPT], "image": "a.png", "answer": "x"}, "give the answer once"),
        ({"conversations": [HUMAN], "messages": [USER]}, "conversations and messages"),
        (
            {"conversations": [HUMAN, GPT], "image": "a.png", "images": ["a.png"]},
            "image and images",
        ),
        ({"conversations": [HUMAN, GPT], "image": 3}, "is no path of a picture"),
        ({"query": "?", "audios": ["a.wav"]}, "sound can't be asked about"),
        ({"query": "?", "history": [["x"]]}, "no list of pairs"),
        ({"messages": [USER | {"tool_calls": [1]}, ASSISTANT]}, "calls of tools"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]}
            | {"images": ["a.png", "b.png"]},
            "more than text",
        ),
    ],
)
def test_what_makes_no_question_is_named_with_its_line(folder, row, message):
    good = ROWS["LLaVA"][0]
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, good, row)
    assert "data.jsonl line 2" in str(caught.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.just("<image>"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "role", "value", "content", "type", "text", "image", "path"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
_rows = st.fixed_dictionaries(
    {},
    optional={
        key: _json
        for key in (
            *("conversations", "messages", "query", "response", "history", "system"),
            *("image", "images", "video", "videos", "answer", "answers", "id", "choices"),
        )
    },
)


@given(_rows)
def test_any_row_becomes_examples_or_one_line_about_it(tmp_path_factory, row):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps([row]))
    with contextlib.suppress(ValueError):
        assert read_json_list(path).load([0])[0].messages[-1]["role"] == "user"


def test_a_question_of_our_own_forms_is_no_trainers_row():
    assert not is_trainer_row({"question": "?", "image": "a.png"})
    assert not is_trainer_row({"messages": [USER]})
    assert make_long_form({"query": "?"}) == {"messages": [{"role": "user", "content": "?"}]}
