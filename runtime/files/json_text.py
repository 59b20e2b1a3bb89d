"""Parse JSON text, refusing what other parsers accept in silence.

Python's parser takes the last of two equal keys, reads 1e999 as infinity, and knows NaN, which is
no JSON at all: a file that means two things, or none, is refused by name.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DIGITS = 100  # of an integer; 10**30 stands in tokenizer configurations of checkpoints


class _RefusedError(ValueError):
    """What is JSON for Python's parser, and not for us."""


def parse_json(
    text: str | bytes,
    where: str,
    error: type[ValueError] = ValueError,
    *,
    with_infinity: bool = False,
) -> Any:
    """Parse JSON strictly.

    Args:
        text: JSON; bytes are UTF-8.
        where: what messages call it: "manifest.json".
        error: raised for what is wrong.
        with_infinity: let Infinity and NaN be, which files of our own for ourselves may have.

    Raises:
        ValueError: of the class `error`: it is no JSON, is nested too deeply, holds a key twice, a
            number that is not finite, or one of hundreds of digits.
    """
    try:
        return json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_make_object,
            parse_constant=float if with_infinity else _refuse_constant,
            parse_float=_read_float,
            parse_int=_read_int,
        )
    except _RefusedError as cause:
        raise error(f"{where} {cause}") from None
    except UnicodeDecodeError as cause:
        raise error(f"{where} is not UTF-8: {cause}") from cause
    except RecursionError as cause:
        raise error(f"{where} is not JSON of ours: it is nested too deeply") from cause
    except ValueError as cause:
        raise error(f"{where} is not JSON: {cause}") from cause


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(
                    f"has the key {key[:80]!a} twice in one object: it is damaged or was edited "
                    "wrongly; leave one of them"
                )
            seen.add(key)
    return made


def _refuse_constant(word: str) -> NoReturn:
    raise _RefusedError(f"holds {word}, needed finite numbers")


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"holds the number {text[:40]}, which is not finite as a float64")
    return value


def _read_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _RefusedError(f"holds a number of {len(text)} digits, at most {MAX_DIGITS} are read")
    return int(text)
