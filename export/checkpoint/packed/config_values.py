"""Values of a quantization_config, checked: flags, integers, names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_GROUP = 2**31 - 1


def flag(where: str, raw: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean; null counts as absent."""
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {key} is {value!r:.80}, true or false is needed")
    return value


def integer(where: str, raw: Mapping[str, Any], *keys: str, default: int | None) -> int:
    """An integer by the first of the keys that is there; null counts as absent."""
    for key in keys:
        value = raw.get(key)
        if value is None:
            continue
        if type(value) is not int:
            raise ValueError(f"{where}: {key} is {value!r:.80}, an integer is needed")
        return value
    if default is None:
        raise ValueError(f"{where} has no {keys[0]}")
    return default


def group_size(where: str, raw: Mapping[str, Any], *keys: str, default: int | None) -> int:
    """Inputs that share a scale, or -1 for one scale a row."""
    size = integer(where, raw, *keys, default=default)
    if size != -1 and not 0 < size <= MAX_GROUP:
        raise ValueError(f"{where}: {keys[0]} is {size}, -1 or a positive size is needed")
    return size


def strings(where: str, raw: Mapping[str, Any], key: str) -> list[str]:
    """A list of names; null counts as empty."""
    values = raw.get(key)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise ValueError(f"{where}: {key} is {values!r:.80}, a list of names is needed")
    return values
