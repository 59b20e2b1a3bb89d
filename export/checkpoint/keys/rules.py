"""The kinds of rules for a checkpoint's keys: honoured, refused, or without effect.

A key that changes answers must never be dropped silently. A reader calls `check_keys` with its
file's rules before it reads; a test walks transformers' own classes and asks that every key they
know has a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Treatment = Literal["honoured", "refused", "no effect"]


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What becomes of one key.

    Attributes:
        section: file and, where the key is nested, the object: "config.json: vision_config".
        key: its name there.
        treatment: "refused" holds for values other than `neutral` ones.
        reason: one phrase for the documentation and for the error: how it is honoured, why it is
            refused, why it has no effect.
        neutral: values of a refused key that ask for nothing; None always counts as absent.
    """

    section: str
    key: str
    treatment: Treatment
    reason: str
    neutral: tuple[Any, ...] = ()


def check_keys(
    section: str,
    values: Mapping[str, Any],
    rules: Iterable[KeyRule],
    *,
    is_known: Callable[[str], bool] = lambda key: False,
) -> tuple[str, ...]:
    """Refuse what is refused, and name what no rule knows.

    Args:
        section: as in the rules.
        values: the object at that place.
        rules: of any sections; those of others are passed over.
        is_known: of keys without a rule that are no surprise: a kind of keys that a reader follows.

    Returns:
        A remark about the unknown keys, or nothing.

    Raises:
        ValueError: a refused key has a value that asks for something.
    """
    known = {rule.key: rule for rule in rules if rule.section == section}
    for key, value in values.items():
        rule = known.get(key)
        if rule is None or rule.treatment != "refused" or value is None:
            continue
        if not any(_is_same(value, neutral) for neutral in rule.neutral):
            raise ValueError(f"{section}: {key} is {value!r:.80}, which is refused: {rule.reason}")
    unknown = sorted(
        key
        for key, value in values.items()
        if key not in known and value is not None and not is_known(key)
    )
    return (f"{section}: unknown to transformers: {', '.join(unknown)}",) if unknown else ()


def _is_same(value: Any, neutral: Any) -> bool:
    """Equal, with true and 1 apart."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
