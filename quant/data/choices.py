"""Find in a model's words the letter it chose, or the numbers and phrases that may be its answer.

After eval_utils.py of github.com/MMMU-Benchmark/MMMU. Where that draws a letter at random
because it finds none, here nothing is chosen: a score must not depend on luck.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ENDS = (",", ".", "!", "?", ";", ":", "'")  # taken off one after the other
KEY_PHRASES = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ",
)  # fmt: skip
# Numbers with commas, in scientific notation, and plain ones
NUMBER_PATTERNS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def find_choice(response: str, choices: Sequence[str]) -> str | None:
    """The chosen letter: "(B)", else " B ", else "B. ..." or an option's text; the last of several.

    The first two are MMMU's; it reads texts only in answers of more than five words, and has no
    rule for "B. black cat".

    Args:
        response: the model's answer.
        choices: the options' texts, A first; empty texts are never found by their text.
    """
    response = response.strip()
    for end in ENDS:
        response = response.strip(end)
    response = f" {response} "
    letters = LETTERS[: len(choices)]
    for form in ("({})", " {} "):
        places = {letter: response.rfind(form.format(letter)) for letter in letters}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=places.__getitem__)
    if (start := re.match(r"\s*([A-Z])[.:)]", response)) and start[1] in letters:
        return start[1]
    # an option's final period is as good as none, as the response's
    texts = {
        letter: text.lower().strip().rstrip(".")
        for letter, text in zip(letters, choices, strict=True)
    }
    ends = {}
    for letter, text in texts.items():
        place = response.lower().rfind(text)
        if text and place >= 0:
            # of "cat" and "black cat", which end at the same place, the longer one is meant
            ends[letter] = (place + len(text), len(text))
    return max(ends, key=ends.__getitem__, default=None)


def find_open_answers(response: str) -> set[str | float]:
    """What in an answer without options may be meant: key phrases, and the numbers in them."""
    phrases = _find_key_phrases(response)
    numbers = [
        n for phrase in phrases for pattern in NUMBER_PATTERNS for n in re.findall(pattern, phrase)
    ]
    return {form for text in (*phrases, *numbers) for form in normalize_open(text)}


def normalize_open(text: str) -> list[str | float]:
    """A number as a float of two decimals, anything else in lower case."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        # a single letter must stand apart
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def _find_key_phrases(response: str) -> list[str]:
    """Of each line the shortest piece after a word that announces a result."""
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    phrases = []
    for number, line in enumerate(lines, 1):
        marks = KEY_PHRASES if number < len(lines) else (*KEY_PHRASES, "=")
        pieces = [line.rsplit(mark, 1)[1].strip() for mark in marks if mark in line]
        # an empty piece counts for nothing, as in the original's loop
        shortest = ""
        for piece in pieces:
            if not shortest or len(piece) < len(shortest):
                shortest = piece
        if shortest and shortest not in ENDS:
            phrases.append(shortest)
    return phrases or [response]
