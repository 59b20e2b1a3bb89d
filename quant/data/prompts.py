"""Phrase a question for the model: pictures first, then the text, then how to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .choices import LETTERS

# As lmms-eval puts them for models in general.
ASK_FOR_LETTER = "Answer with the option's letter from the given choices directly."
ASK_FOR_PHRASE = "Answer the question using a single word or phrase."
ASK_FOR_WORD = "Answer the question with a single word."


def ask_for_letter(question: str, choices: Sequence[str]) -> str:
    """A question with its choices under it, as A, B, ..."""
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *options, ASK_FOR_LETTER])


def make_messages(
    question: str, images: Sequence[Any] = (), frames: Sequence[Any] = ()
) -> tuple[dict[str, Any], ...]:
    """One user's message: pictures, then a clip, then the text, as `Model.answer` has them."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if frames:
        content.append({"type": "video", "video": list(frames)})
    return ({"role": "user", "content": [*content, {"type": "text", "text": question}]},)
