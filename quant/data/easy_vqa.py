"""Read the PyPI package easy-vqa: questions about one drawn shape, 64 x 64 pixels.

The one labelled set that installs offline: `pip install easy-vqa`. Its files are read, its code is
not run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from .examples import Example
from .jsonl import read_json
from .listing import Entry, Listing, make_listing
from .prompts import ASK_FOR_PHRASE, make_messages

SPLITS = ("test", "train")


def read_easy_vqa(split: str = "test") -> Listing:
    """List the questions of one split.

    Raises:
        ValueError: no such split, the package is missing or other than known.
    """
    if split not in SPLITS:
        raise ValueError(f"easy-vqa has no split {split!r}, it has {', '.join(SPLITS)}")
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise ValueError("easy-vqa is not installed: pip install easy-vqa")
    folder = Path(spec.origin).parent / "data" / split
    path = folder / "questions.json"
    raw = read_json(path)
    if not isinstance(raw, list) or not all(_is_question(row) for row in raw):
        raise ValueError(f"{path} is not what easy-vqa 1.0 has: [question, answer, picture] each")
    entries = [Entry(f"{split}/{i}", "easy-vqa", f"{path} entry {i}") for i in range(len(raw))]

    def load(indices: Sequence[int]) -> list[Example]:
        examples = []
        for i in indices:
            question, answer, picture = raw[i]
            messages = make_messages(
                f"{question}\n{ASK_FOR_PHRASE}", [str(folder / "images" / f"{picture}.png")]
            )
            examples.append(
                Example(entries[i].id, messages, (answer,), entries[i].task, "word_match")
            )
        return examples

    return make_listing("easy-vqa", entries, load)


def _is_question(row: object) -> bool:
    return isinstance(row, list) and [type(value) for value in row] == [str, str, int]
