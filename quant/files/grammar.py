"""Numbers and the words that agree with them: 1 limit fails, 2 limits fail."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """1 example, 2 examples; `plural` where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def agree(number: int, singular: str, plural: str) -> str:
    """The form of a verb or pronoun for so many: fails or fail, stands or stand."""
    return singular if number == 1 else plural


def part_of(number: int, total: int, noun: str, singular: str, plural: str) -> str:
    """1 of 8 limits fails, 2 of 8 limits fail, 1 of 1 limit fails.

    The noun agrees with the whole, the verb with the part.
    """
    return f"{number} of {counted(total, noun)} {agree(number, singular, plural)}"


def all_of(total: int, noun: str, singular: str, plural: str) -> str:
    """All 8 limits hold; the one limit holds."""
    return f"the one {noun} {singular}" if total == 1 else f"all {total} {noun}s {plural}"


def everything(total: int, noun: str) -> str:
    """All 8 layers; The one layer."""
    return f"The one {noun}" if total == 1 else f"All {total} {noun}s"
