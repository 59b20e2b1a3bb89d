from vlmedge.quant.data.prompts import ask_for_letter, make_messages
from vlmedge.runtime.inputs.messages import list_media, read_messages


def test_pictures_come_before_a_clip_and_both_before_the_text():
    messages = make_messages("What?", ["a.png", "b.png"], ["0.png", "1.png"])
    parts = read_messages(messages)[0].parts
    assert [part.sources for part in list_media(read_messages(messages))] == [
        ("a.png",),
        ("b.png",),
        ("0.png", "1.png"),
    ]
    assert parts[-1].text == "What?"


def test_a_question_without_pictures_is_text_alone():
    assert make_messages("What?")[0]["content"] == [{"type": "text", "text": "What?"}]


def test_choices_are_lettered_in_order():
    lines = ask_for_letter("Which?", ["red", "blue", "none"]).splitlines()
    assert lines[:4] == ["Which?", "A. red", "B. blue", "C. none"]
    assert "letter" in lines[4]
