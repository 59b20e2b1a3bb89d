"""Read examples from a file of questions: JSON lines, or one JSON list.

A line is an object in one of two forms:

| key | short form | long form |
|---|---|---|
| `messages` | no | as `Model.chat` takes them, the last one the user's |
| `question` | the text; pictures come before it | no |
| `image` (or `picture`), `images` | a path, or a list of paths | no |
| `video` (or `frames`) | a list of paths, or a folder of frames, in order of names | no |
| `answer`, `answers` | one accepted answer, or a list of them | the same |
| `choices` | texts that are put under the question as A, B, ... | already in `messages` |
| `metric` | of `task_metrics.METRICS`; else exact_match or multiple_choice | the same |
| `task` | what scores are grouped by | the same |
| `id` | else the number of the line | the same |

Rows as trainers write them are read as well, see `trainer_rows`. Where there are choices, an answer
is a letter; a number is taken as its text. Paths are relative to the file, or to a folder that is
named; pictures may be data URLs, never web addresses. Null counts as absent. Other keys are not
read: they are counted and told, so that a misspelt one is not lost in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.files.json_text import parse_json
from ...runtime.files.regular_file import open_regular
from ...runtime.inputs.messages import MAX_TEXT_CHARS, MediaPart, TextPart, read_messages
from .choices import LETTERS
from .examples import Example
from .listing import Entry, Listing, make_listing
from .prompts import ask_for_letter, make_messages
from .task_metrics import METRICS
from .trainer_rows import KNOWN, is_trainer_row, make_long_form

MAX_LINE_BYTES = 64 << 20  # data URLs can be long
MAX_LIST_BYTES = 256 << 20
# key of a picture -> whether its value is a list; None: either
_MEDIA = {"image": False, "picture": False, "images": True, "video": None, "frames": None}
_KEYS = {"id", "task", "metric", "choices", "answer", "answers", "messages", "question", *_MEDIA}


def read_jsonl(path: Path, media_root: Path | None = None) -> Listing:
    """Read a file with an object a line; empty lines are passed over.

    Args:
        path: of the file.
        media_root: what paths of pictures are relative to; None: the file's folder.

    Raises:
        ValueError: names the file, the line and what is wrong with it.
    """
    found = []
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path} line {number}"
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{where} is over {MAX_LINE_BYTES} bytes: this is no question")
                text = _decode(line, where)
                if text.strip():
                    found.append((where, number, _parse(text, where)))
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror or error}") from error
    return _list(path, found, media_root)


def read_json_list(path: Path, media_root: Path | None = None) -> Listing:
    """Read a file with one list of objects, like samples/pictures/questions.json.

    Args:
        path: of the file.
        media_root: see `read_jsonl`.

    Raises:
        ValueError: names the file, the entry and what is wrong with it.
    """
    raw = read_json(path)
    if not isinstance(raw, list):
        raise ValueError(f"{path} is of type {_name_type(raw)}, needed a list of objects")
    found = [(f"{path} entry {i}", i, entry) for i, entry in enumerate(raw, 1)]
    return _list(path, found, media_root)


def read_json(path: Path) -> Any:
    """Any JSON of reasonable size.

    Raises:
        ValueError: it can't be read, is too large or no JSON.
    """
    try:
        with open_regular(path) as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror or error}") from error
    if len(data) > MAX_LIST_BYTES:
        raise ValueError(f"{path} is over {MAX_LIST_BYTES} bytes: write it as JSON lines")
    return _parse(_decode(data, str(path)), str(path))


def _list(path: Path, found: list[tuple[str, int, Any]], media_root: Path | None) -> Listing:
    folder = media_root.resolve() if media_root else path.resolve().parent  # workers run elsewhere
    unknown: Counter[str] = Counter()
    examples, seen = [], set()
    for where, number, raw in found:
        row, is_trainers = _bring_to_own_form(raw, where, unknown)
        example = _read_example(row, where, folder, number)
        if is_trainers and example.id in seen:  # theirs name a picture, which several rows may ask
            example = replace(example, id=f"{example.id}#{number}")
        seen.add(example.id)
        examples.append(example)
    entries = [
        Entry(example.id, example.task, where)
        for example, (where, _, _) in zip(examples, found, strict=True)
    ]
    notices = [f"{path.name}: not read: {_count_keys(unknown)}"] if unknown else []
    return make_listing(path.name, entries, lambda indices: [examples[i] for i in indices], notices)


def _bring_to_own_form(raw: Any, where: str, unknown: Counter[str]) -> tuple[dict[str, Any], bool]:
    """A row of our own forms without nulls and unknown keys, and whether a trainer wrote it."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is of type {_name_type(raw)}, needed an object")
    row = {key: value for key, value in raw.items() if value is not None}
    is_trainers = is_trainer_row(row)
    known = KNOWN if is_trainers else _KEYS
    unknown.update(row.keys() - known)
    row = {key: value for key, value in row.items() if key in known}
    if not is_trainers:
        return row, False
    try:
        return make_long_form(row), True
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _count_keys(unknown: Counter[str]) -> str:
    """The most frequent ones, each with its number of rows."""
    named = ", ".join(f"{key!r:.60} in {count} rows" for key, count in unknown.most_common(8))
    more = f" and {len(unknown) - 8} keys more" if len(unknown) > 8 else ""
    return f"{named}{more}"


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text, "it")
    except ValueError as error:
        raise ValueError(f"{where} is not JSON, or was cut off: {error}") from error


def _read_example(raw: dict[str, Any], where: str, folder: Path, number: int) -> Example:
    choices = tuple(_read_texts(raw["choices"], where, "choices")) if "choices" in raw else ()
    answers = _read_answers(raw, where)
    _check_choices(choices, answers, where)
    metric = _read_text(raw, "metric", where, "multiple_choice" if choices else "exact_match")
    if metric not in METRICS:
        raise ValueError(f"{where} has the metric {metric!r}, known are {', '.join(METRICS)}")
    if answers and len(answers) < METRICS[metric].min_answers:
        raise ValueError(
            f"{where} has {len(answers)} answers, {metric} needs {METRICS[metric].min_answers}"
        )
    if not (name := _read_words(raw.get("id", str(number)), where, "id")):
        raise ValueError(f"{where} has an empty id")
    return Example(
        id=name,
        messages=_read_conversation(raw, where, folder, choices),
        answers=answers,
        task=_read_text(raw, "task", where, ""),
        metric=metric,
        choices=choices,
    )


def _read_conversation(
    raw: dict[str, Any], where: str, folder: Path, choices: tuple[str, ...]
) -> tuple[Mapping[str, Any], ...]:
    media = sorted(raw.keys() & _MEDIA.keys())
    if "messages" in raw:
        if extra := [*media, *({"question"} & raw.keys())]:
            raise ValueError(f"{where} has messages and {', '.join(extra)}: give one of the forms")
        messages = raw["messages"]
    elif "question" not in raw:
        raise ValueError(f"{where} has neither messages nor a question")
    elif len(media) > 1:
        raise ValueError(f"{where} has {' and '.join(media)}: more than one needs messages")
    else:
        question = _read_text(raw, "question", where, "")
        question = ask_for_letter(question, choices) if choices else question
        messages = list(
            _ask(question, media[0], raw[media[0]], where) if media else make_messages(question)
        )
    try:
        checked = read_messages(_wrap_clips(messages))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if checked[-1].role != "user":
        raise ValueError(f"{where}: the last message is the {checked[-1].role}'s, needed a user's")
    return tuple(
        {
            "role": message.role,
            "content": message.parts[0].text
            if message.is_plain and isinstance(message.parts[0], TextPart)
            else [_write_part(part, where, folder) for part in message.parts],
        }
        for message in checked
    )


def _ask(question: str, key: str, value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """The short form's one message."""
    is_list = _MEDIA[key]
    if is_list is None and isinstance(value, str):  # a folder of frames
        return make_messages(question, (), [value])
    if is_list is False:
        if not isinstance(value, str):
            raise ValueError(f"{where} has {key} of type {_name_type(value)}, needed a path")
        return make_messages(question, [value])
    paths = _read_texts(value, where, key)
    if not paths:
        raise ValueError(f"{where} has no {key}: the list is empty")
    return make_messages(question, paths) if is_list else make_messages(question, (), paths)


def _wrap_clips(messages: Any) -> Any:
    """A clip's folder as a list of one; it is opened with the pictures."""
    if not isinstance(messages, list):
        return messages

    def wrap(part: Any) -> Any:
        if isinstance(part, dict) and part.get("type") == "video":
            video = part.get("video")
            return part | {"video": [video]} if isinstance(video, str) else part
        return part

    return [
        message | {"content": [wrap(part) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _write_part(part: TextPart | MediaPart, where: str, folder: Path) -> dict[str, Any]:
    """A checked part with absolute paths."""
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    sources = []
    for source in part.sources:
        if not isinstance(source, (str, bytes)):
            raise ValueError(f"{where} has a picture of type {_name_type(source)}, needed a path")
        sources.append(str(folder / source) if isinstance(source, str) else source)
    height, width = part.resized or (None, None)
    limits = {
        "min_pixels": part.min_pixels,
        "max_pixels": part.max_pixels,
        "resized_height": height,
        "resized_width": width,
    }
    return {
        "type": part.kind,
        part.kind: sources if part.kind == "video" else sources[0],
        **{name: value for name, value in limits.items() if value is not None},
    }


def _read_answers(raw: dict[str, Any], where: str) -> tuple[str, ...]:
    if "answer" in raw and "answers" in raw:
        raise ValueError(f"{where} has answer and answers: give one of them")
    if "answer" in raw:
        answers = raw["answer"] if isinstance(raw["answer"], list) else [raw["answer"]]
        return tuple(_read_words(answer, where, "answer") for answer in answers)
    if "answers" not in raw:
        return ()
    answers = raw["answers"]
    if not isinstance(answers, list):
        raise ValueError(f"{where} has answers of type {_name_type(answers)}, needed a list")
    return tuple(_read_words(answer, where, f"answers[{i}]") for i, answer in enumerate(answers))


def _check_choices(choices: tuple[str, ...], answers: tuple[str, ...], where: str) -> None:
    letters = LETTERS[: len(choices)]
    if len(choices) == 1 or len(choices) > len(LETTERS):
        raise ValueError(f"{where} has {len(choices)} choices, needed 2 to {len(LETTERS)}")
    for answer in answers if choices else ():
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"{where} has the answer {answer!r:.80}, needed a letter of {letters}")


def _read_text(raw: dict[str, Any], key: str, where: str, default: str) -> str:
    if key not in raw:
        return default
    return _check_text(raw[key], where, key)


def _read_texts(value: Any, where: str, key: str) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{where} has {key} of type {_name_type(value)}, needed a list")
    return [_check_text(text, where, f"{key}[{i}]") for i, text in enumerate(value)]


def _read_words(value: Any, where: str, key: str) -> str:
    """A text; a number as JSON spells it."""
    if type(value) in (int, float):
        return str(value)
    return _check_text(value, where, key)


def _check_text(value: Any, where: str, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} has {key} of type {_name_type(value)}, needed a string")
    if len(value) > MAX_TEXT_CHARS:
        raise ValueError(
            f"{where} has {key} of {len(value)} characters, at most {MAX_TEXT_CHARS} are taken"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate
        raise ValueError(f"{where} has {key} of no valid Unicode: {error}") from error
    return value


def _name_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
