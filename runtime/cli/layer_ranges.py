"""Join names that differ only in the layer's number: model.layers.{0..27}.mlp.down_proj."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def fold_layers(named: Iterable[tuple[str, K]]) -> list[tuple[str, K]]:
    """Join what is equal but for the first number among the parts of its name.

    Args:
        named: (dotted name, everything else that must be equal).

    Returns:
        The same in order of first appearance, a name for all layers of a kind.
    """
    layers: dict[tuple[str, str | None, K], list[int]] = {}
    for name, rest in named:
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if place is None:
            layers[name, None, rest] = []
            continue
        head, tail = ".".join(parts[:place]), ".".join(parts[place + 1 :])
        layers.setdefault((head, tail, rest), []).append(int(parts[place]))
    return [(_join(head, numbers, tail), rest) for (head, tail, rest), numbers in layers.items()]


def _join(head: str, numbers: Sequence[int], tail: str | None) -> str:
    parts = [head, _format_numbers(numbers) if numbers else "", tail or ""]
    return ".".join(part for part in parts if part)


def _format_numbers(numbers: Sequence[int]) -> str:
    """3, {0..27}, or {0,2..5} where one of another kind is between."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]
    return texts[0] if len(numbers) == 1 else f"{{{','.join(texts)}}}"
