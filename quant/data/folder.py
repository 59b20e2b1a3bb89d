"""Read a folder of pictures as examples to calibrate with, each with one question and no answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...runtime.inputs.picture_files import by_number, is_picture_name
from .examples import Example
from .listing import Entry, Listing, make_listing
from .prompts import make_messages

# Asked in turn, so that the decoder's ranges come from prompts of several kinds and lengths.
QUESTIONS = (
    "Describe this picture.",
    "What text can be read in this picture? Write down all of it.",
    "What is shown here? Answer in one sentence.",
    "How many objects are there, and which ones?",
    "Is there a number in the picture? If so, which?",
    "Which colors are there, and where?",
)


def read_folder(folder: Path) -> Listing:
    """List the pictures of a folder and of those below it; other files are passed over.

    Raises:
        ValueError: there are none, or the folder can't be read.
    """

    def fail(error: OSError) -> None:
        raise ValueError(f"can't read {error.filename}: {error.strerror}") from error

    root = folder.resolve()
    found = [
        (Path(parent) / name).relative_to(root).as_posix()
        for parent, _, names in os.walk(root, onerror=fail)
        for name in names
        if is_picture_name(name)
    ]
    names = sorted(found, key=by_number)
    entries = [Entry(name, "", f"{folder}/{name}") for name in names]

    def load(indices: Sequence[int]) -> list[Example]:
        return [
            Example(names[i], make_messages(QUESTIONS[i % len(QUESTIONS)], [str(root / names[i])]))
            for i in indices
        ]

    if not entries:
        raise ValueError(f"{folder} holds no pictures: real ones are needed, none are made up")
    return make_listing(root.name, entries, load)
