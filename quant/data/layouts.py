"""Say what every column of a benchmark means, in the layouts that Hugging Face has.

| layout | hub id | files | columns read | metric |
|---|---|---|---|---|
| docvqa | lmms-lab/DocVQA | DocVQA/validation | questionId, question, answers, image | anls |
| infovqa | lmms-lab/DocVQA | InfographicVQA/validation | the same | anls |
| chartqa | lmms-lab/ChartQA | data/test | question, answer, image | relaxed_accuracy |
| chartqa | HuggingFaceM4/ChartQA | data/test | query, label, image | relaxed_accuracy |
| textvqa | lmms-lab/textvqa | data/validation | question_id, question, answers, image | textvqa_accuracy |
| ocrbench | echo840/OCRBench | data/test | dataset, question, answer, image | ocrbench(_formula) |
| mmmu | MMMU/MMMU | SUBJECT/validation | id, question, options, question_type, answer, image_1 to image_7 | multiple_choice, mmmu_open |
| mmbench | lmms-lab/MMBench | en/dev | index, hint, question, A to D, answer, image | multiple_choice |
| realworldqa | lmms-lab/RealWorldQA | data/test | question, answer, image | multiple_choice, word_match |
| mathvista | AI4Math/MathVista | data/testmini | pid, question, choices, unit, precision, question_type, answer_type, answer, decoded_image | multiple_choice, mathvista_number, exact_match |

mvbench, which has JSON and videos, is in `data_mvbench`. An image is a struct of `bytes` (a file's)
and `path` (beside the parquet file, where there are no bytes). Other columns are not read. A test
set without answers is read with none: good to calibrate with.
"""  # noqa: E501

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .choices import LETTERS
from .prompts import ASK_FOR_PHRASE, ASK_FOR_WORD, ask_for_letter

Row = Mapping[str, Any]
# (answer_type, decimals) -> how MathVista's question is asked
MATHVISTA_ANSWERS = {
    ("integer", 0): "Answer the question using a single integer number.",
    ("float", 0): "Answer the question using a single floating-point number.",
    (
        "float",
        1,
    ): "Answer the question using a single floating-point number with one decimal place.",
    (
        "float",
        2,
    ): "Answer the question using a single floating-point number with two decimal places.",
    ("list", 0): "Answer the question using a Python list.",
}


class Slot(NamedTuple):
    """The place of a picture in a prompt: the name of its column."""

    column: str


@dataclass(frozen=True, slots=True)
class Question:
    """One row without its pictures.

    Attributes:
        id: None: the row's number.
        content: texts and pictures in the prompt's order.
    """

    id: str | None
    content: tuple[str | Slot, ...]
    answers: tuple[str, ...]
    metric: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """How one benchmark lies in its files.

    Attributes:
        hub: owner/name to download, where that is what is given.
        files: of the split that is scored, relative to the repository.
        columns: sets of them, one of which a file has to have; without pictures.
        pictures: columns of pictures; those of them that a file has are read.
        read: a row of these columns, without pictures -> its question.
    """

    hub: str
    files: str
    columns: tuple[tuple[str, ...], ...]
    pictures: tuple[str, ...]
    read: Callable[[Row], Question]


def _read_docvqa(row: Row) -> Question:
    return _ask(row, "questionId", ASK_FOR_PHRASE, _texts(row, "answers"), "anls")


def _read_chartqa(row: Row) -> Question:
    if "label" in row:  # HuggingFaceM4's copy
        row = {"question": row["query"], "answer": row["label"]}
    return _ask(row, None, ASK_FOR_WORD, _texts(row, "answer"), "relaxed_accuracy")


def _read_textvqa(row: Row) -> Question:
    answers = _texts(row, "answers")
    return _ask(row, "question_id", ASK_FOR_PHRASE, answers, "textvqa_accuracy")


def _read_ocrbench(row: Row) -> Question:
    metric = "ocrbench_formula" if row["dataset"] == "HME100k" else "ocrbench"
    return _ask(row, None, "", _texts(row, "answer"), metric)


def _read_mmmu(row: Row) -> Question:
    question, answers = _text(row, "question"), _texts(row, "answer")
    answers = () if answers == ("?",) else answers  # of the test set
    if row["question_type"] == "multiple-choice":
        choices = _choices(row, "options")
        text = ask_for_letter(question, choices)
        return Question(
            _text(row, "id"),
            _place_images(text),
            _letters(answers, choices),
            "multiple_choice",
            choices,
        )
    answers = tuple(text for answer in answers for text in _parse_list(answer) or (answer,))
    content = _place_images(f"{question}\n{ASK_FOR_PHRASE}")
    return Question(_text(row, "id"), content, answers, "mmmu_open")


def _read_mmbench(row: Row) -> Question:
    options = [row[letter] for letter in "ABCD"]
    choices = tuple(text for text in options if isinstance(text, str) and text != "nan")
    if len(choices) < 2 or choices != tuple(options[: len(choices)]):
        raise ValueError(f"options A to D are {options}, needed texts without a gap")
    hint = "" if row["hint"] in (None, "nan", "") else _text(row, "hint") + "\n"
    content = (Slot("image"), ask_for_letter(hint + _text(row, "question"), choices))
    answers = _letters(_texts(row, "answer"), choices)
    return Question(str(row["index"]), content, answers, "multiple_choice", choices)


def _read_realworldqa(row: Row) -> Question:
    question, answers = _text(row, "question"), _texts(row, "answer")
    options = re.findall(r"^([A-Z])\. *(.*)$", question, re.MULTILINE)
    letters = "".join(letter for letter, _ in options)
    content = (Slot("image"), question)  # says by itself how to answer
    if len(options) > 1 and LETTERS.startswith(letters) and set(answers) <= set(letters):
        choices = tuple(text.strip() for _, text in options)
        return Question(None, content, answers, "multiple_choice", choices)
    return Question(None, content, answers, "word_match")


def _read_mathvista(row: Row) -> Question:
    question, answers = _text(row, "question"), _texts(row, "answer")
    if row["unit"]:
        question += f" (Unit: {_text(row, 'unit')})"
    if row["question_type"] == "multi_choice":
        choices = _choices(row, "choices")
        if unknown := set(answers) - set(choices):
            raise ValueError(f"answer {unknown.pop()!r} is none of the choices")
        answers = tuple(LETTERS[choices.index(answer)] for answer in answers)
        content = (Slot("decoded_image"), ask_for_letter(question, choices))
        return Question(_text(row, "pid"), content, answers, "multiple_choice", choices)
    kind = row["answer_type"]
    how = MATHVISTA_ANSWERS.get((kind, row["precision"] or 0)) or MATHVISTA_ANSWERS.get((kind, 0))
    content = (Slot("decoded_image"), f"{question}\n{how or ASK_FOR_PHRASE}")
    metric = "mathvista_number" if kind in ("integer", "float") else "exact_match"
    return Question(_text(row, "pid"), content, answers, metric)


def _ask(
    row: Row, id_column: str | None, how: str, answers: tuple[str, ...], metric: str
) -> Question:
    """A question about one picture with a text for an answer."""
    text = "\n".join(filter(None, [_text(row, "question"), how]))
    name = None if id_column is None else str(row[id_column])
    return Question(name, (Slot("image"), text), answers, metric)


def _place_images(text: str) -> tuple[str | Slot, ...]:
    """MMMU's "<image 1>" becomes the picture where it is first named, and stays text after that."""
    content: list[str | Slot] = []
    seen: set[str] = set()
    for piece in re.split(r"(<image [1-7]>)", text):
        column = piece[1:-1].replace(" ", "_")
        if re.fullmatch(r"<image [1-7]>", piece) and column not in seen:
            seen.add(column)
            content.append(Slot(column))
        elif piece:
            content.append(piece)
    return tuple(content)


def _text(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{column} is {value!r:.80}, needed a text")
    return value


def _texts(row: Row, column: str) -> tuple[str, ...]:
    """A text or a list of them; nothing where there is none."""
    value = row[column]
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"{column} is {value!r:.80}, needed a text or a list of them")
    return tuple(values)


def _choices(row: Row, column: str) -> tuple[str, ...]:
    """A list of options, or a text that spells one as Python does."""
    value = row[column]
    found = _parse_list(value) if isinstance(value, str) else _texts(row, column)
    if found is None or not 0 < len(found) <= len(LETTERS):
        raise ValueError(f"{column} is {value!r:.80}, needed a list of 1 to {len(LETTERS)} texts")
    return found


def _parse_list(text: str) -> tuple[str, ...] | None:
    """Items of a list as Python spells it; None for any other text."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return tuple(map(str, found)) if isinstance(found, list) else None


def _letters(answers: tuple[str, ...], choices: tuple[str, ...]) -> tuple[str, ...]:
    letters = LETTERS[: len(choices)]
    for answer in answers:
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"answer is {answer!r:.80}, needed one of {letters}")
    return answers


_DOCVQA = ("questionId", "question", "answers")
_MATHVISTA = (
    *("pid", "question", "choices", "unit", "precision"),
    *("question_type", "answer_type", "answer"),
)
IMAGE = ("image",)
LAYOUTS = {
    "docvqa": Layout(
        "lmms-lab/DocVQA", "DocVQA/validation-*.parquet", (_DOCVQA,), IMAGE, _read_docvqa
    ),
    "infovqa": Layout(
        "lmms-lab/DocVQA", "InfographicVQA/validation-*.parquet", (_DOCVQA,), IMAGE, _read_docvqa
    ),
    "chartqa": Layout(
        "lmms-lab/ChartQA",
        "data/test-*.parquet",
        (("question", "answer"), ("query", "label")),
        IMAGE,
        _read_chartqa,
    ),
    "textvqa": Layout(
        "lmms-lab/textvqa",
        "data/validation-*.parquet",
        (("question_id", "question", "answers"),),
        IMAGE,
        _read_textvqa,
    ),
    "ocrbench": Layout(
        "echo840/OCRBench",
        "data/test-*.parquet",
        (("dataset", "question", "answer"),),
        IMAGE,
        _read_ocrbench,
    ),
    "mmmu": Layout(
        "MMMU/MMMU",
        "*/validation-*.parquet",
        (("id", "question", "options", "question_type", "answer"),),
        tuple(f"image_{i}" for i in range(1, 8)),
        _read_mmmu,
    ),
    "mmbench": Layout(
        "lmms-lab/MMBench",
        "en/dev-*.parquet",
        (("index", "hint", "question", "A", "B", "C", "D", "answer"),),
        IMAGE,
        _read_mmbench,
    ),
    "realworldqa": Layout(
        "lmms-lab/RealWorldQA",
        "data/test-*.parquet",
        (("question", "answer"),),
        IMAGE,
        _read_realworldqa,
    ),
    "mathvista": Layout(
        "AI4Math/MathVista",
        "data/testmini-*.parquet",
        (_MATHVISTA,),
        ("decoded_image",),
        _read_mathvista,
    ),
}
