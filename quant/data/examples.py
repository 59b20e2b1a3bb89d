"""An example: one question with its pictures and answers, the same from any source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..files.source_stamp import SourceStamp

NO_TASK = "all"  # what examples without a task are counted under


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation that a model answers, and how the answer is scored.

    Attributes:
        id: unique in its data set, stable between runs: "receipt/0012".
        messages: as `vlmedge.runtime.Model.chat` takes them; pictures are paths or
            the bytes of a file.
        answers: every accepted answer; empty where nothing is known (calibration pictures).
        task: what scores are grouped by: "receipt", "docvqa"; "" where there is one group only.
        metric: a key of `task_metrics.METRICS`.
        choices: of a multiple-choice question, in order; else empty.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...] = ()
    task: str = ""
    metric: str = "exact_match"
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """Examples from one source.

    Attributes:
        name: of the source, without its folder: "questions.jsonl", "easy-vqa".
        sha256: over every example's text and the bytes of its pictures, in order.
        examples: at least one.
        skipped: example id -> why it could not be read; only where skipping was asked for.
        stamp: of the files of pictures, which are read again when they are used.
        notices: what a person should know of the source, a line each.
    """

    name: str
    sha256: str
    examples: tuple[Example, ...]
    skipped: Mapping[str, str]
    stamp: SourceStamp = field(default=SourceStamp({}), repr=False, compare=False)
    notices: tuple[str, ...] = field(default=(), compare=False)
