"""Limit what one rendering of a chat template may cost, where values are made and read.

A checkpoint's template is somebody else's program. Jinja's sandbox keeps it from files and modules,
but not from `{{ 'x' * 10**10 }}`, from a list that is doubled sixty times over, or from loops in
loops. So the weight of every value is limited, which bounds the time to compare or print it, and
every step draws on one budget. A value that could be large is measured before it is made.
"""

from __future__ import annotations

import re
import string
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Sized, ValuesView
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2.utils import Namespace

MAX_WEIGHT = 1 << 25  # one value, as `weigh` counts: 33 million characters, 167,000 items
MAX_UNITS = 400_000_000  # one rendering: a few seconds; real prompts take some hundred thousand
UNITS_PER_INPUT = 256  # more units for each character and item of the messages
MAX_INT_BITS = 1 << 14
MAX_INT_ARGUMENT = 1_000_000
MAX_FIELD_WIDTH = 1000  # a number in a format, and the text around an item of JSON
MAX_FORMAT_CHARS = 10_000
MAX_STRIPPED_CHARS = 100  # different characters that are cut off a text's ends
STEP_UNITS = 2000  # one turn of a loop, one call, one filter
ITEM_UNITS = 200  # one item of a list or a mapping
WRITE_UNITS = 16  # one character that is written; reading one takes 1 unit

_FORMATTER = string.Formatter()
_NUMBER = re.compile(r"[0-9]+")
_FIELD = re.compile(r"%(?:\([^()%]*\))?[-#0 +]*[0-9*]*\.?[0-9*]*")
_WIDTH_FROM_VALUES = re.compile(r"%[^a-zA-Z%]*\*")
_NESTED_KEY = re.compile(r"%\([^()%]*[(%]")  # Python counts brackets, which a pattern can't
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # of str.splitlines
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template asks for more than a chat template needs."""


class Budget:
    """The units that are left to one rendering."""

    def __init__(self, units: int) -> None:
        """Start with `units`."""
        self._units = units

    def spend(self, units: int) -> None:
        """Take units from the budget.

        Raises:
            TemplateLimitError: fewer are left.
        """
        self._units -= units
        if self._units < 0:
            raise TemplateLimitError("it takes too many steps or writes too much text")

    def read(self, value: Any) -> Any:
        """Pay for looking at all of a value, and return it."""
        self.spend(weigh(value))
        return value

    def iterate(self, value: Any) -> Any:
        """Pay for going through a value item by item, and return it; characters are items."""
        self.spend(check_size(len(value) * ITEM_UNITS) if isinstance(value, str) else weigh(value))
        return value

    def made(self, value: Any) -> Any:
        """Pay for a value that was made, and return it."""
        weight = weigh(value)
        self.spend(weight * WRITE_UNITS if isinstance(value, str) else weight)
        return value

    def write(self, value: Any) -> str:
        """The text of a value, as templates print it."""
        self.read(value)
        return self.made(str(value))


def weigh(value: Any) -> int:
    """Characters and items of a value; a part that is in it twice counts twice.

    Raises:
        TemplateLimitError: the value is over MAX_WEIGHT, or holds a number of too many digits or a
            namespace inside another value.
    """
    if isinstance(value, str):
        return check_size(len(value))
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        total += ITEM_UNITS
        if item is None or type(item) in (bool, float):
            continue
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            check_size(total + 2 * ITEM_UNITS * (len(item) + len(stack)))
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, _CONTAINERS):
            check_size(total + ITEM_UNITS * (len(item) + len(stack)))
            stack.extend(item)
        elif isinstance(item, range):
            total += ITEM_UNITS * len(item)
        elif isinstance(item, int):
            check_bits(item.bit_length())
        elif isinstance(item, Namespace):
            if item is not value:
                raise TemplateLimitError("it puts a namespace into another value")
            stack.append(item._Namespace__attrs)  # the only way in: it shows templates no other
        check_size(total)
    return total


def check_size(size: int) -> int:
    """Return a size, in characters or units, if a value may have it.

    Raises:
        TemplateLimitError: it is over MAX_WEIGHT.
    """
    if size > MAX_WEIGHT:
        raise TemplateLimitError("it makes too large a value")
    return size


def check_bits(num_bits: int) -> None:
    """Refuse a number that takes too many bits.

    Raises:
        TemplateLimitError: over MAX_INT_BITS.
    """
    if num_bits > MAX_INT_BITS:
        raise TemplateLimitError("it makes a number of too many digits")


def check_int(value: Any, largest: int = MAX_INT_ARGUMENT) -> None:
    """Refuse a number that would become a length or a count; other values pass.

    Raises:
        TemplateLimitError: it is too large.
    """
    if isinstance(value, int) and abs(value) > largest:
        raise TemplateLimitError(f"it uses a number over {largest} as a length or a count")


def check_format(pattern: str, values: Iterable[Any]) -> None:
    """Refuse formats like "%5d" whose result could be too large.

    Raises:
        TemplateLimitError: a field is too wide, or there are too many large ones.
    """
    _check_pattern(pattern)
    if _NESTED_KEY.search(pattern):
        raise TemplateLimitError("it has a format with a bracket or percent sign in a key")
    fields = _FIELD.findall(pattern)
    from_values = _WIDTH_FROM_VALUES.search(pattern) is not None
    _check_fields(pattern, fields, values, from_values=from_values)


def check_braces(pattern: str, values: Iterable[Any]) -> None:
    """Refuse formats like "{:5}" whose result could be too large.

    Raises:
        TemplateLimitError: as check_format, or a field's width is itself a field.
        ValueError: the pattern is not a valid format.
    """
    _check_pattern(pattern)
    fields = [spec for _, name, spec, _ in _FORMATTER.parse(pattern) if name is not None]
    specs = [spec or "" for spec in fields]
    if any("{" in spec for spec in specs):
        raise TemplateLimitError("it has a format with a field inside a field")
    _check_fields(pattern, specs, values, from_values=False)


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_FORMAT_CHARS:
        raise TemplateLimitError(f"it has a format of over {MAX_FORMAT_CHARS} characters")


def _check_fields(
    pattern: str, fields: list[str], values: Iterable[Any], *, from_values: bool
) -> None:
    for number in _NUMBER.findall(" ".join(fields)):
        check_int(int(number) if len(number) < 10 else 10**9, MAX_FIELD_WIDTH)
    largest = MAX_FIELD_WIDTH
    for value in values:
        if from_values:
            check_int(value, MAX_FIELD_WIDTH)
        largest = max(largest, weigh(value))
    check_size(len(pattern) + len(fields) * largest)


def check_backwards(text: str, part: str | None = None, *_: Any, **__: Any) -> None:
    """Pay for a search from the end, which may compare every place with the whole part."""
    if isinstance(text, str) and isinstance(part, str):
        get_budget().spend(len(text) * len(part) // 8)


def check_rsplit(text: str, sep: str | None = None, *_: Any, **__: Any) -> None:
    """Check a split from the end by check_split and check_backwards."""
    check_split(text, sep)
    check_backwards(text, sep)


def check_strip(text: Any, chars: str | None = None, *_: Any, **__: Any) -> None:
    """Refuse to strip very many different characters."""
    if isinstance(chars, str):
        check_int(len(chars), MAX_STRIPPED_CHARS)


def charge(items: Iterator[Any]) -> Iterator[Any]:
    """Pay for the items of a lazy filter as they are made."""
    budget = get_budget()
    for item in items:
        budget.spend(weigh(item))
        yield item


def check_replace(text: Any, old: str, new: str, *_: Any, **__: Any) -> None:
    """Refuse a replacement whose result is too large."""
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        check_size(len(text) + text.count(old) * len(new))


def check_split(text: str, separator: str | None = None, *_: Any, **__: Any) -> None:
    """Refuse a split into too many pieces."""
    num_pieces = text.count(separator) if separator else len(text) // 2
    check_size(num_pieces * ITEM_UNITS)


def check_lines(text: str, *_: Any, **__: Any) -> None:
    """Refuse a split into too many lines."""
    check_size(sum(map(text.count, _LINE_ENDS)) * ITEM_UNITS)


def check_join(separator: str, items: Sized) -> None:
    """Refuse a join whose result is too large."""
    check_size(len(separator) * len(items) + weigh(items))


def check_indent(text: str, width: int | str = 4, *_: Any, **__: Any) -> None:
    """Refuse an indentation whose result is too large."""
    check_int(width)
    size = width if isinstance(width, int) else len(str(width))
    check_size(len(text) + size * (text.count("\n") + 1))


def check_binop(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result is too large.

    Raises:
        TemplateLimitError: the result would be over a limit.
    """
    if operator == "%" and isinstance(left, str):
        check_format(left, right if isinstance(right, tuple) else (right,))
    elif operator == "*":
        for some, times in ((left, right), (right, left)):
            if isinstance(some, (str, list, tuple)) and isinstance(times, int):
                check_size(weigh(some) * max(times, 0))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() * max(right, 0))


class BoundedNamespace(Namespace):
    """`namespace()` whose values are weighed like all others."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        """Check the first values as `__setitem__` does."""
        for value in dict(*args[1:], **kwargs).values():
            weigh([value])
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        weigh([value])  # in a list: a namespace in a namespace is refused
        super().__setitem__(name, value)


_current: ContextVar[Budget] = ContextVar("budget")


def get_budget() -> Budget:
    """The budget of the rendering in progress in this thread."""
    return _current.get()


def render_within(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Render a template that `render.compile_template` made, within a budget of its own."""
    token = _current.set(Budget(MAX_UNITS + UNITS_PER_INPUT * weigh(variables)))
    try:
        pieces, size = [], 0
        for piece in template.generate(**variables):
            size = check_size(size + len(piece))
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _current.reset(token)
