"""Turn parsed JSON or TOML into frozen dataclasses; what does not fit is an error with its place.

A field's type may be a dataclass, a Literal, an optional type, a union, a tuple, a list, a dict
with strings as keys, a number, a boolean or a string. A field with a default may be missing. In a
union of dataclasses each begins with a Literal of one word, by which the right one is chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .json_text import parse_json

T = TypeVar("T")


def read_strict(value: Any, kind: type[T], where: str, error: type[ValueError] = ValueError) -> T:
    """Convert a parsed value into the annotated type `kind`, or name the place that doesn't fit.

    Args:
        value: the value that json.loads or tomllib.loads returned.
        kind: a dataclass, or any type that a field of one may have.
        where: how error messages call the value: "manifest.json", "recipe orin".
        error: the class of the errors, also in place of a ValueError from a dataclass' own checks.

    Raises:
        ValueError: of the class `error`: an unknown, missing or wrongly typed key, by its name.
    """
    return _Reader(error).read(value, kind, where)


def parse_object(
    text: str | bytes, where: str, error: type[ValueError] = ValueError
) -> dict[str, Any]:
    """Parse JSON whose outermost value is an object; arguments as of `read_strict`.

    Raises:
        ValueError: of the class `error`: it is not JSON by the rules of `parse_json`, or not an
            object.
    """
    raw = parse_json(text, where, error)
    if not isinstance(raw, dict):
        raise error(f"{where} holds a {type(raw).__name__}, an object is needed")
    return raw


@dataclasses.dataclass(frozen=True, slots=True)
class _Reader:
    error: type[ValueError]

    def read(self, value: Any, kind: Any, where: str) -> Any:
        origin, args = get_origin(kind), get_args(kind)
        if dataclasses.is_dataclass(kind):
            return self._read_dataclass(value, kind, where)
        if origin is Literal:
            if not any(type(value) is type(option) and value == option for option in args):
                needed = ", ".join(map(repr, args))
                raise self.error(f"{where} is {_show(value)}, needed one of {needed}")
            return value
        if origin in (Union, UnionType):
            return self._read_union(value, args, where)
        if origin is tuple:
            return self._read_tuple(value, args, where)
        if origin is list:
            return list(self._read_tuple(value, (args[0], ...), where))
        if origin is dict:
            if not isinstance(value, Mapping):
                raise self.error(f"{where} is {_show(value)}, needed an object")
            return {key: self.read(item, args[1], f"{where}.{key}") for key, item in value.items()}
        if kind is float and type(value) in (int, float):
            if not abs(value) < 2**63:  # infinity and NaN, which both formats can say, included
                raise self.error(f"{where} is {_show(value)}, needed a finite number")
            return float(value)
        if type(value) is not kind:
            raise self.error(f"{where} is {_show(value)}, needed {_name(kind)}")
        return value

    def _read_dataclass(self, value: Any, kind: Any, where: str) -> Any:
        if not isinstance(value, Mapping):
            raise self.error(f"{where} is {_show(value)}, needed an object")
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        hints = get_type_hints(kind)
        if unknown := sorted(set(value) - set(fields)):
            known = ", ".join(fields)
            raise self.error(
                f"{where} has unknown keys: {', '.join(unknown):.200}; it may have {known}"
            )
        needed = {name for name, field in fields.items() if not _has_default(field)}
        if missing := sorted(needed - set(value)):
            raise self.error(f"{where} lacks: {', '.join(missing)}")
        read = {
            name: self.read(item, hints[name], f"{where}.{name}") for name, item in value.items()
        }
        try:
            return kind(**read)
        except ValueError as error:
            raise self.error(f"{where}: {error}") from error

    def _read_union(self, value: Any, options: Sequence[Any], where: str) -> Any:
        if value is None and NoneType in options:
            return None
        given = [option for option in options if option is not NoneType]
        if len(given) == 1:
            return self.read(value, given[0], where)
        if isinstance(value, Mapping):
            records = [option for option in given if dataclasses.is_dataclass(option)]
            if len(records) > 1:
                records = [record for record in records if _is_meant(record, value)]
            if len(records) == 1:
                return self.read(value, records[0], where)
        for option in sorted(given, key=lambda option: type(value) is not option):
            try:
                return self.read(value, option, where)
            except self.error:
                continue
        names = " or ".join(map(_name, options))
        raise self.error(f"{where} is {_show(value)}, needed {names}")

    def _read_tuple(self, value: Any, args: Sequence[Any], where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise self.error(f"{where} is {_show(value)}, needed a list")
        if len(args) == 2 and args[1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) != len(value):
            raise self.error(f"{where} has {len(value)} items, needed {len(args)}")
        pairs = zip(value, args, strict=True)
        return tuple(self.read(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(pairs))


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _is_meant(record: Any, value: Mapping[str, Any]) -> bool:
    """Whether `value` has the word that stands for this dataclass of a union."""
    first = dataclasses.fields(record)[0].name
    return value.get(first) in get_args(get_type_hints(record)[first])


def _name(kind: Any) -> str:
    if kind is NoneType:
        return "nothing"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _show(value: Any) -> str:
    """A value as a message may hold it: a whole object or a number of 5,000 digits is cut."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
