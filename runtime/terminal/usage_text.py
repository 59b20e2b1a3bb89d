"""Put the parser's complaint about a wrong command line into the words of our other errors.

typer checked values itself up to 0.20 and has pydantic do it since; neither's text is shown.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

_NOT_IN_RANGE = re.compile(r"(.+) is not in the range (\S+)")
_NO_NUMBER = re.compile(r"(?:Value )?'(.*)' is not a valid (\w+)(?: range)?", re.DOTALL)
_NO_CHOICE = re.compile(r"'(.*)' is not one of (.+)", re.DOTALL)
_COMMAND = re.compile(r"No such command ('.*?')\.?(?: Did you mean (.*)\?)?", re.DOTALL)
_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)
_USAGE = re.compile(r"Option '(\S+)' (requires an argument|does not take a value)")
_QUOTED = re.compile(r"'([^']*)'")
_NUMBERS = {"integer": "a whole number", "int": "a whole number", "float": "a number"}
_VALIDATOR_PREFIX = "Value error, "


def describe_usage(error: Any) -> str:
    """One sentence without a capital or a full stop: the option, the value given, the one needed.

    Args:
        error: a UsageError, of typer's own click or of click.
    """
    kind = type(error).__name__
    message = str(error.message).removeprefix(_VALIDATOR_PREFIX).rstrip(".")
    if kind == "MissingParameter":
        return f"{_name(error)} is missing"
    if kind == "NoSuchOption":
        return f"there is no option {error.option_name}{_suggest(error)}"
    if match := _USAGE.match(message):
        return f"{match[1]} {'needs a value' if 'requires' in match[2] else 'takes no value'}"
    if match := _COMMAND.fullmatch(message):
        hint = f"; did you mean {match[2]}?" if match[2] else ""
        return f"there is no command {match[1]}{hint}"
    if match := _EXTRA.fullmatch(message):
        return f"{match[1]} is more than the command takes"
    if kind == "BadParameter":
        return _describe_value(error, message)
    return f"{message[:1].lower()}{message[1:]}"


def _describe_value(error: Any, message: str) -> str:
    name = _name(error)
    if match := _NOT_IN_RANGE.fullmatch(message):
        return f"{name} is {match[1]}, needed {_read_range(match[2])}"
    if match := _NO_NUMBER.fullmatch(message):
        return f"{name} is {match[1]!r}, needed {_NUMBERS.get(match[2], match[2])}"
    if match := _NO_CHOICE.fullmatch(message):
        choices = _QUOTED.findall(match[2]) or [match[2]]
        return f"{name} is {match[1]!r}, needed one of {', '.join(choices)}"
    details = _read_validation(error.__cause__)
    if details is not None:
        given, needed = details
        return f"{name} is {given}, needed {needed or _describe_bounds(error.param)}"
    return message if not name or name in message else f"{name}: {message}"


def _read_validation(cause: Any) -> tuple[str, str] | None:
    """The given and the needed value of a pydantic error; "": a number within the bounds."""
    try:
        (first, *_) = cause.errors()
        kind, given = first["type"], str(first["input"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if kind.startswith(("greater_than", "less_than")):
        return given, ""
    if kind.startswith("int"):
        return repr(given), "a whole number"
    if kind.startswith(("float", "finite")):
        return repr(given), "a number"
    return repr(given), "another value"


def _describe_bounds(param: Any) -> str:
    """The range of numbers that an option takes, by typer's own record or click's type."""
    low, high = (
        getattr(param, name, None) if hasattr(param, name) else getattr(param.type, name, None)
        for name in ("min", "max")
    )
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"{low:g} or more" if low is not None else f"{high:g} or less"


def _read_range(text: str) -> str:
    """0<=x<=5 -> 0 to 5; x>=1 -> 1 or more."""
    if match := re.fullmatch(r"(\S+)<=x<=(\S+)", text):
        return f"{match[1]} to {match[2]}"
    if match := re.fullmatch(r"x>=(\S+)", text):
        return f"{match[1]} or more"
    if match := re.fullmatch(r"x<=(\S+)", text):
        return f"{match[1]} or less"
    return f"a value with {text}"


def _name(error: Any) -> str:
    """The option or argument as it is typed."""
    param = getattr(error, "param", None)
    if param is None:
        hint = getattr(error, "param_hint", None)
        return "" if hint is None else str(hint).strip("'")
    if getattr(param, "param_type_name", "") == "argument":
        return str(param.metavar or param.name.upper())
    return max(param.opts, key=len)


def _suggest(error: Any) -> str:
    close = get_close_matches(error.option_name, error.possibilities or (), 1)
    return f"; did you mean {close[0]}?" if close else ""
