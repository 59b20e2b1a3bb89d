"""Cards of answers that differ, with their pictures."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.quant.compare.findings import TextFinding
from vlmedge.quant.report import examples as report_examples
from vlmedge.quant.report.examples import encode_picture, example_sections, mark_differences


def text(example, got, reference="12", *, task="t", scores=(1.0, 0.0), distance=1):
    return TextFinding(example, task, "How much?", ("12",), reference, got, 0, 1, distance, *scores)


def cards(texts, pictures=None):
    (section,) = example_sections(texts, pictures)
    return section.items[0].cards


def joined(parts, *, differing=None):
    return "".join(p.text for p in parts if differing is None or p.differs == differing)


def decode(uri):
    head, _, data = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image


def test_lost_answers_come_first_and_tasks_take_turns():
    texts = [
        text("won", "12", "13", scores=(0.0, 1.0)),
        text("same", "13", "14", scores=(0.0, 0.0)),
        text("a/1", "13", task="a", distance=1),
        text("a/2", "130", task="a", distance=2),
        text("b/1", "13", task="b"),
        text("equal", "12"),
        text("half", "1", task="c", scores=(1.0, 0.5)),
    ]
    shown = cards(texts)
    assert [card.title.rpartition(" ")[2] for card in shown] == [
        "a/2",
        "b/1",
        "half",
        "a/1",
        "same",
        "won",
    ]
    assert [card.tag for card in shown][-3:] == ["lost", "same score", "won"]


def test_unlabelled_answers_have_no_score():
    (card,) = cards([text("x", "13", scores=(None, None))])
    assert card.tag == "unlabelled"
    assert [answer.score for answer in card.answers] == ["", ""]


@given(st.text("ab 1", max_size=12), st.text("ab 1", max_size=12))
@settings(max_examples=150, deadline=None)
def test_pieces_make_up_the_answers_and_equal_ones_are_equal(reference, got):
    first, second = mark_differences(reference, got)
    assert joined(first) == reference
    assert joined(second) == got
    assert joined(first, differing=False) == joined(second, differing=False)
    if reference == got:
        assert not any(part.differs for part in (*first, *second))


def test_a_word_that_differs_is_marked_whole():
    first, second = mark_differences("total is 12.50 EUR", "total is 12.58 EUR")
    assert [part.text for part in first if part.differs] == ["50"]
    assert [part.text for part in second if part.differs] == ["58"]


def test_long_answers_are_marked_from_the_first_difference_on():
    words = "w " * 1000
    first, second = mark_differences(f"{words}a", f"{words}b and more")
    assert [part.text for part in first] == [words, "a"]
    assert [part.text for part in second] == [words, "b and more"]
    _, longer = mark_differences(words, words + words)
    assert joined(longer, differing=True) == words


def test_pictures_are_shrunk_and_kept_as_they_look():
    gradient = np.tile(np.linspace(0, 255, 800, dtype=np.uint8)[:, None], (1, 1200))
    picture = decode(encode_picture(Image.fromarray(gradient)))
    assert picture.size == (360, 240)
    assert np.asarray(picture.convert("L"))[120, 180] == pytest.approx(127, abs=4)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    assert decode(encode_picture(Image.fromarray(noise))).format == "JPEG"
    flat = Image.new("RGBA", (80, 60), (200, 30, 30, 255))
    small = decode(encode_picture(flat))
    assert (small.format, small.size) == ("PNG", (80, 60))
    assert small.getpixel((5, 5)) == (200, 30, 30)


def test_the_callers_picture_is_left_as_it_is():
    image = Image.new("RGB", (900, 900))
    encode_picture(image)
    assert image.size == (900, 900)


def test_pictures_stand_in_their_card_and_more_are_counted():
    def pictures(example):
        return [Image.new("RGB", (40, 40), (i * 20, 0, 0)) for i in range(6)]

    (card,) = cards([text("clip", "13")], pictures)
    assert len(card.pictures) == 4
    assert card.note == "and 2 more"
    assert len(set(card.pictures)) == 4


@pytest.mark.parametrize(
    "error", [FileNotFoundError("a.png is gone"), ValueError("bad"), KeyError("x")]
)
def test_a_picture_that_is_gone_does_not_cost_the_report(error):
    def pictures(example):
        raise error

    (card,) = cards([text("x", "13")], pictures)
    assert card.pictures == ()
    assert card.note.startswith("No picture: ")


def test_pictures_stop_before_the_report_grows_too_large(monkeypatch):
    monkeypatch.setattr(report_examples, "MAX_BYTES", 300)
    image = Image.new("RGB", (50, 50))
    shown = cards([text(str(i), "13") for i in range(9)], lambda _: [image])
    assert shown[0].pictures
    assert not shown[-1].pictures
    assert "too large" in shown[-1].note


def test_what_has_no_card_is_a_row_and_what_has_no_row_is_counted(monkeypatch):
    monkeypatch.setattr(report_examples, "MAX_CARDS", 2)
    monkeypatch.setattr(report_examples, "MAX_ROWS", 3)
    (section,) = example_sections([text(f"e{i}", "13") for i in range(7)], None)
    assert "7 of 7 answers differ" in section.texts[0]
    shown, table = section.items
    assert len(shown.cards) == 2
    assert [row[0].text for row in table.rows] == ["e2", "e3", "e4"]
    assert "2 more" in table.summary


def test_equal_answers_are_told_and_none_measured_says_nothing():
    (section,) = example_sections([text("a", "12")], None)
    assert section.texts == ("The one answer is equal.",)
    assert example_sections((), None) == []


def test_answers_that_were_cut_off_are_counted():
    cut = dataclasses.replace(text("a", "12"), got_ended=False)
    for texts, told in (
        ([cut], "1 of 1 answer of this bundle did not end by itself"),
        (
            [cut, dataclasses.replace(cut, example="b", got="other")],
            "2 of 2 answers of this bundle did not end by themselves",
        ),
    ):
        (section,) = example_sections(texts, None)
        assert told in section.texts[0]
