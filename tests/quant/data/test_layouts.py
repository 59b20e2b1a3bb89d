"""Rows as the benchmarks have them, one of each kind, and what becomes of them."""

import pytest

from vlmedge.quant.data.choices import find_choice
from vlmedge.quant.data.layouts import LAYOUTS, Slot
from vlmedge.quant.data.task_metrics import METRICS

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."

DOCVQA = {"questionId": "337", "question": "What is the date?", "answers": ["1/8/93", "1993"]}
TEXTVQA = {"question_id": 34602, "question": "what brand?", "answers": ["nokia"] * 9 + ["toshiba"]}
OCRBENCH = {"dataset": "IIIT5K", "question": "what is written?", "answer": ["CENTRE"]}
MMMU = {
    "id": "validation_Art_1",
    "question": "Compare <image 1> and <image 2>.",
    "options": "['<image 2>', 'neither', \"both, I'd say\"]",
    "question_type": "multiple-choice",
    "answer": "C",
}
MMBENCH = {
    "index": 241,
    "hint": "nan",
    "question": "Which is it?",
    "A": "cat",
    "B": "dog",
    "C": None,
    "D": None,
    "answer": "B",
}
REALWORLD = {
    "question": "Where?\n\nA. Left.\nB. Right.\nPlease answer with only the letter.",
    "answer": "B",
}
MATHVISTA = {
    "pid": "1",
    "question": "How long?",
    "choices": None,
    "unit": "cm",
    "precision": 1.0,
    "question_type": "free_form",
    "answer_type": "float",
    "answer": "1.2",
}


def read(layout, row, **changes):
    return LAYOUTS[layout].read(row | changes)


def text_of(question):
    return "".join(piece for piece in question.content if isinstance(piece, str))


@pytest.mark.parametrize("layout", ["docvqa", "infovqa"])
def test_documents_are_asked_for_a_phrase_and_scored_by_anls(layout):
    question = read(layout, DOCVQA)
    assert question.content == (Slot("image"), f"What is the date?\n{PHRASE}")
    assert (question.id, question.metric) == ("337", "anls")
    assert question.answers == ("1/8/93", "1993")
    assert read(layout, DOCVQA, answers=None).answers == ()  # the test set


@pytest.mark.parametrize(
    "row",
    [
        {"question": "How many?", "answer": "14", "type": "human_test"},
        {"query": "How many?", "label": ["14"], "human_or_machine": 0},
    ],
)
def test_both_copies_of_chartqa_give_the_same_question(row):
    question = LAYOUTS["chartqa"].read(row)
    assert text_of(question) == "How many?\nAnswer the question with a single word."
    assert (question.id, question.answers) == (None, ("14",))
    assert question.metric == "relaxed_accuracy"


def test_textvqa_has_its_ten_answers():
    question = read("textvqa", TEXTVQA)
    assert (question.id, question.metric) == ("34602", "textvqa_accuracy")
    assert len(question.answers) == 10


def test_ocrbench_is_asked_as_it_stands_and_formulas_have_their_own_rule():
    question = read("ocrbench", OCRBENCH)
    assert (text_of(question), question.metric) == ("what is written?", "ocrbench")
    assert read("ocrbench", OCRBENCH, dataset="HME100k").metric == "ocrbench_formula"
    assert read("ocrbench", OCRBENCH, answer="CENTRE").answers == ("CENTRE",)


def test_mmmu_puts_a_picture_where_it_is_first_named():
    question = read("mmmu", MMMU)
    first, second = Slot("image_1"), Slot("image_2")
    assert question.content[:4] == ("Compare ", first, " and ", second)
    assert question.content[4] == ".\nA. "
    assert question.content[5].startswith("<image 2>") or question.content[5] == "<image 2>"
    assert text_of(question).endswith(f"\nB. neither\nC. both, I'd say\n{LETTER}")
    assert question.choices == ("<image 2>", "neither", "both, I'd say")
    assert (question.answers, question.metric) == (("C",), "multiple_choice")


def test_mmmu_s_hidden_answers_are_none():
    assert read("mmmu", MMMU, answer="?").answers == ()


@pytest.mark.parametrize(
    ("answer", "answers"),
    [("24.5", ("24.5",)), ("['24', 'twenty four']", ("24", "twenty four")), ("[a", ("[a",))],
)
def test_mmmu_s_open_questions_may_have_several_answers(answer, answers):
    question = read("mmmu", MMMU, question_type="open", options="[]", answer=answer)
    assert (question.answers, question.metric, question.choices) == (answers, "mmmu_open", ())
    assert text_of(question).endswith(PHRASE)


def test_mmbench_lists_the_options_that_there_are():
    question = read("mmbench", MMBENCH)
    assert text_of(question) == f"Which is it?\nA. cat\nB. dog\n{LETTER}"
    assert (question.id, question.choices, question.answers) == ("241", ("cat", "dog"), ("B",))
    hinted = read("mmbench", MMBENCH, hint="Look left.", C="nan", D="nan")
    assert text_of(hinted).startswith("Look left.\nWhich is it?\nA. cat\nB. dog\nAnswer")
    assert read("mmbench", MMBENCH, answer=None).answers == ()


def test_realworldqa_s_options_are_found_in_its_question():
    question = read("realworldqa", REALWORLD)
    assert text_of(question) == REALWORLD["question"]
    assert (question.metric, question.choices) == ("multiple_choice", ("Left.", "Right."))
    assert find_choice("Right.", question.choices) == "B"
    word = read("realworldqa", REALWORLD, question="How many?", answer="Three")
    assert (word.metric, word.answers, word.choices) == ("word_match", ("Three",), ())


@pytest.mark.parametrize(
    ("kind", "precision", "asked", "metric"),
    [
        ("float", 1.0, "a single floating-point number with one decimal place.", None),
        ("float", 2.0, "a single floating-point number with two decimal places.", None),
        ("float", None, "a single floating-point number.", None),
        ("integer", None, "a single integer number.", None),
        ("list", None, "a Python list.", "exact_match"),
        ("text", None, "a single word or phrase.", "exact_match"),
    ],
)
def test_mathvista_says_what_kind_of_answer_it_wants(kind, precision, asked, metric):
    question = read("mathvista", MATHVISTA, answer_type=kind, precision=precision)
    assert text_of(question) == f"How long? (Unit: cm)\nAnswer the question using {asked}"
    assert question.metric == (metric or "mathvista_number")
    assert question.content[0] == Slot("decoded_image")


def test_mathvista_s_chosen_text_becomes_its_letter():
    choices = ["Yes", "No"]
    row = MATHVISTA | {"question_type": "multi_choice", "choices": choices, "answer": "No"}
    question = read("mathvista", row, unit="")
    assert text_of(question) == f"How long?\nA. Yes\nB. No\n{LETTER}"
    assert (question.answers, question.metric) == (("B",), "multiple_choice")


@pytest.mark.parametrize(
    ("layout", "row", "message"),
    [
        ("docvqa", DOCVQA | {"question": None}, "question is None, needed a text"),
        ("docvqa", DOCVQA | {"question": ""}, "question is '', needed a text"),
        ("docvqa", DOCVQA | {"answers": [1]}, "answers is"),
        ("docvqa", DOCVQA | {"answers": 3.5}, "answers is 3.5, needed a text or a list"),
        ("mmmu", MMMU | {"options": "[1, 2"}, "options is"),
        ("mmmu", MMMU | {"options": "[]"}, "options is"),
        ("mmmu", MMMU | {"options": "{}"}, "options is"),
        ("mmmu", MMMU | {"answer": "D"}, "answer is 'D', needed one of ABC"),
        ("mmmu", MMMU | {"options": ["x"] * 27}, "needed a list of 1 to 26"),
        ("mmbench", MMBENCH | {"B": None, "C": "x"}, "without a gap"),
        ("mmbench", MMBENCH | {"B": None}, "without a gap"),
        ("mmbench", MMBENCH | {"answer": "C"}, "answer is 'C', needed one of AB"),
        (
            "mathvista",
            MATHVISTA | {"question_type": "multi_choice", "choices": ["a", "b"]},
            "answer '1.2' is none of the choices",
        ),
    ],
)
def test_a_row_of_another_form_is_refused(layout, row, message):
    with pytest.raises(ValueError, match=message):
        LAYOUTS[layout].read(row)


def test_every_layout_is_in_the_table_with_its_hub_id_and_its_columns():
    from vlmedge.quant.data import layouts

    rows = {}
    for line in (layouts.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in LAYOUTS:
            rows.setdefault(cells[0], []).append(cells)
    assert rows.keys() == LAYOUTS.keys()
    for name, layout in LAYOUTS.items():
        assert rows[name][0][1] == layout.hub
        assert len(rows[name]) == len(layout.columns)
        assert all(any(metric in row[4] for metric in METRICS) for row in rows[name])
    assert {"question", "answer", "image"} == set(rows["chartqa"][0][3].split(", "))
