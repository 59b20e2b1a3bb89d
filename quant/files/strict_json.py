"""Read numbers of a cache from JSON, or raise an error that names the key.

Vectors are lines of 16 numbers, each the shortest text that reads back as the same bits: a file
that is small, can be looked at, and whose diff shows where two calibrations part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS_A_LINE = 16


def check_keys(data: Any, keys: Sequence[str]) -> None:
    """Refuse what is no object with exactly these keys.

    Raises:
        ValueError: names the key that is missing or unknown.
    """
    if not isinstance(data, dict):
        raise ValueError(f"got {shorten(data)}, needed an object with {', '.join(keys)}")
    for key in keys:
        if key not in data:
            raise ValueError(f"{key} is missing")
    for key in data:
        if key not in keys:
            raise ValueError(f"{shorten(key)} is an unknown key, known are {', '.join(keys)}")


def read_number(data: Mapping[str, Any], key: str, dtype: type[np.floating] = np.float64) -> float:
    """A magnitude or a sum of squares.

    Raises:
        ValueError: negative, not finite, no number, or not a value of `dtype`.
    """
    value = data[key]
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{key} is {shorten(value)}, needed a finite number that is not negative")
    if value > float(np.finfo(dtype).max) or float(dtype(value)) != value:
        raise ValueError(f"{key} is {shorten(value)}, which is no {dtype.__name__}")
    return float(value)


def read_vector(
    data: Mapping[str, Any],
    key: str,
    size: int,
    dtype: type[np.floating],
    *,
    signed: bool = False,
) -> NDArray[Any]:
    """Read what `write_vector` wrote: any[size], not negative unless `signed`.

    Raises:
        ValueError: names the key and the number that is wrong.
    """
    lines = data[key]
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{key} is {shorten(lines)}, needed a list of lines of numbers")
    words = " ".join(lines).split()
    if len(words) != size:
        raise ValueError(f"{key} holds {len(words)} numbers, needed {size}")
    values = np.zeros(size, dtype)
    for index, word in enumerate(words):
        try:
            with np.errstate(over="ignore"):  # infinity is refused below
                values[index] = float(word)
        except ValueError:
            raise ValueError(f"{key}[{index}] is {shorten(word)}, needed a number") from None
        if not (-math.inf if signed else -0.0) <= values[index] < math.inf:
            raise ValueError(
                f"{key}[{index}] is {shorten(word)}, needed a finite number that is not negative"
            )
    return values


def write_vector(values: NDArray[np.floating]) -> list[str]:
    """Lines of the numbers of a vector.

    Args:
        values: float[n].
    """
    text = [str(value) for value in values]  # numpy's shortest text of its own dtype
    return [
        " ".join(text[start : start + NUMBERS_A_LINE])
        for start in range(0, len(text), NUMBERS_A_LINE)
    ]


def shorten(value: Any) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
