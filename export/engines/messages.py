"""Sort TensorRT's messages into errors, and warnings worth a person's time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning"]
MAX_LINE = 400  # characters of one message that are shown


@dataclass(frozen=True, slots=True)
class Message:
    """One line of TensorRT's log, of those that matter."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """Of a warning, and what it means."""

    pattern: str  # regular expression, looked for in any case of letters
    reason: str


# Errors to us: an engine would be built, and not be the one that was asked for
REFUSALS = (
    Pattern(
        r"unused input|input tensor \S+ is unused",
        "nothing reads this input, so what it should change is missing from the result",
    ),
    Pattern(
        r"missing scale and zero-point",
        "a layer that was quantized would be computed in float",
    ),
    Pattern(r"calibrat", "ranges are in the graph; whatever asks for a calibrator was not read so"),
    Pattern(r"fall(s|ing)? ?back", "something would be computed in another way than was asked"),
    Pattern(
        r"converting weights between types|when converted to|outside the range of int(32|8|4)",
        "weights would be stored in another type than the graph says",
    ),
    Pattern(
        r"attempting to cast down|casting (down )?int64",
        "64-bit integers of the graph would be cut",
    ),
    Pattern(r"import as plugin", "an operator that this TensorRT lacks"),
    Pattern(
        r"(ignored|ignoring|will be ignored|is not supported).*(attribute|input|flag)"
        r"|(attribute|input|flag).*(ignored|ignoring|is not supported)",
        "a part of the graph or of the options has no effect",
    ),
)
# What looks like one of them and changes no result
HARMLESS = (
    Pattern(r"timing cache", "kernels are measured again"),
    Pattern(
        r"dla requests all profiles have same min, max, and opt",
        "every build on a Jetson with profiles says so; no layer is asked to run on a DLA",
    ),
    Pattern(r"back to (regular allocation|heuristic|normal (path|execution))", "slower, no more"),
)
# What every build of ours says, and nobody needs to read
EXPECTED = (Pattern(r"has int64 binding", "positions and indices are 64-bit, and stay so"),)


def find_refusals(messages: Iterable[Message], accepted: Sequence[str] = ()) -> list[str]:
    """A line for each warning that is an error to us, with the reason, each text once.

    Args:
        messages: of a build.
        accepted: parts of warnings that a person has found to be harmless.
    """
    found: dict[str, None] = {}
    for message in messages:
        refusal = _find_refusal(message.text) if message.level == "warning" else None
        if refusal is not None and not _is_accepted(message.text, accepted):
            found[f"{shorten(message.text)} ({refusal.reason})"] = None
    return list(found)


def list_warnings(messages: Iterable[Message], accepted: Sequence[str] = ()) -> list[str]:
    """The other warnings, those that were accepted too, each text once with how often it came."""
    counts: dict[str, int] = {}
    for message in messages:
        if message.level == "warning" and _is_worth_reading(message.text, accepted):
            text = shorten(message.text)
            counts[text] = counts.get(text, 0) + 1
    return [text if count == 1 else f"{text} ({count} times)" for text, count in counts.items()]


def list_errors(messages: Iterable[Message]) -> list[str]:
    """The errors, each text once."""
    return list({shorten(each.text): None for each in messages if each.level == "error"})


def describe_parser_error(error: Any) -> str:
    """One of the parser's errors in a line that begins with the node's name.

    Args:
        error: tensorrt's ParserError.
    """
    node, operator = str(error.node_name()), str(error.node_operator())
    where = f"{node or f'node {error.node()}'} ({operator})" if operator else node
    # The code is an enum of the library: "ErrorCode.UNSUPPORTED_NODE"
    code = str(error.code()).rpartition(".")[2]
    return shorten(f"{where or 'graph'}: {error.desc()} [{code}]")


def shorten(text: str) -> str:
    """One line of at most `MAX_LINE` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 4]} ..."


def _is_worth_reading(text: str, accepted: Sequence[str]) -> bool:
    is_refused = _find_refusal(text) is not None and not _is_accepted(text, accepted)
    return _find(EXPECTED, text) is None and not is_refused


def _is_accepted(text: str, accepted: Sequence[str]) -> bool:
    return any(part.lower() in text.lower() for part in accepted)


def _find_refusal(text: str) -> Pattern | None:
    return None if _find((*HARMLESS, *EXPECTED), text) else _find(REFUSALS, text)


def _find(patterns: Iterable[Pattern], text: str) -> Pattern | None:
    return next((each for each in patterns if re.search(each.pattern, text, re.IGNORECASE)), None)
