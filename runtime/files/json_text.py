"""Parse JSON text, refusing what other parsers accept in silence.

Python's parser takes the last of two equal keys, reads 1e999 as infinity, and accepts NaN, which is
not JSON at all. Here a file that could mean two things, or nothing, is refused.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DIGITS = 100  # of an integer; tokenizer configurations of checkpoints have 10**30


class _RefusedError(ValueError):
    """Python's parser accepts it, and `parse_json` does not."""


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
        where: how error messages call it: "manifest.json".
        error: the class of the errors.
        with_infinity: accept Infinity and NaN, which only vlmedge's own working files may have.

    Raises:
        ValueError: of the class `error`: the text is not JSON, is nested too deeply, has a key
            twice, a number that is not finite, or a number of more than MAX_DIGITS digits.
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
        raise error(f"{where} is nested too deeply to be read") from cause
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
                    "wrongly; remove one of them"
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
