"""List the layers that may get a higher precision, the most worthwhile first.

A move is worth the share of the damage that it is expected to take away, over what it costs. Of a
layer with several steps up, one that is worth less than the next is taken together with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..quantize.bundle import TABLE
from ..quantize.plan import LM_HEAD
from ..recipe.recipe import (
    NEXT_HIGHER,
    AttentionRecipe,
    CacheRecipe,
    LayerException,
    Recipe,
    TableRecipe,
)
from ..sensitivity.mixer import Choice

# Parts of a recipe that are given back as a whole -> how the names of their layers end
GROUPS = {"attention": ".attn.products", "kv_cache": ".self_attn.cache", "embedding": TABLE}
NEXT_CACHE = {"int8-tensor": "int8-channel", "int8-channel": "float"}
SUFFIX = "-auto"  # of a recipe's name
SMALLEST_COST = 0.01  # of the mean cost of all moves: nothing is free, and no ratio infinite


@dataclass(frozen=True, slots=True)
class Move:
    """A layer, or a part of GROUPS, given back.

    Attributes:
        before, after: formats.
        gain: share of the whole damage that is expected to go.
        cost: in bytes or milliseconds; may be negative.
    """

    layer: str
    before: str
    after: str
    gain: float
    cost: float


def name_group(name: str) -> str:
    """What a layer is given back with: a linear alone, a cache with all others."""
    return next((group for group, end in GROUPS.items() if name.endswith(end)), name)


def next_format(layer: str, format: str) -> str:
    """One step up; `layer`: of `name_group`."""
    if layer == "kv_cache":
        return NEXT_CACHE[format]
    if layer in GROUPS:
        return "float"
    return NEXT_HIGHER[format]  # type: ignore[index]


def is_fixed(recipe: Recipe, layer: str, after: str) -> bool:
    """Whether the recipe doesn't allow a step: a head that is the table as well stays packed."""
    return layer == LM_HEAD and after == "float" and recipe.embedding.format == "lm_head"


def order_moves(moves: Iterable[Move]) -> list[Move]:
    """The most worthwhile first; of one layer in the order of its steps.

    Args:
        moves: of one layer one behind the other, the lowest precision first.
    """
    moves = list(moves)
    costs = [move.cost for move in moves if move.cost > 0]
    floor = SMALLEST_COST * sum(costs) / len(costs) if costs else 1.0

    def worth(move: Move) -> float:
        return move.gain / max(move.cost, floor)

    chains: dict[str, list[Move]] = {}
    for move in moves:
        chain = chains.setdefault(move.layer, [])
        while chain and worth(chain[-1]) <= worth(move):
            last = chain.pop()
            move = dataclasses.replace(
                move, before=last.before, gain=last.gain + move.gain, cost=last.cost + move.cost
            )
        chain.append(move)
    return sorted((move for chain in chains.values() for move in chain), key=worth, reverse=True)


def apply_moves(choice: Choice, moves: Iterable[Move]) -> dict[str, str]:
    """A choice with moves made; one whose layer isn't where it starts is passed over."""
    changed = dict(choice)
    for move in moves:
        for name in choice:
            if name_group(name) == move.layer and changed[name] == move.before:
                changed[name] = move.after
    return changed


def list_returned(choice: Choice, moves: Sequence[Move]) -> list[tuple[str, str, str]]:
    """(layer or part, format before, format after) of everything that moves change, in order."""
    changed = apply_moves(choice, moves)
    found = [(name_group(n), choice[n], changed[n]) for n in choice if choice[n] != changed[n]]
    return list(dict.fromkeys(found))


def make_recipe(
    recipe: Recipe, returned: Iterable[tuple[str, str, str]], reasons: Mapping[str, str]
) -> Recipe:
    """A recipe with an exception for each layer that was given back.

    Args:
        recipe: to start from; its own exceptions stay.
        returned: of `list_returned`.
        reasons: by layer or part.
    """
    exceptions = list(recipe.layers)
    parts: dict[str, Any] = {}
    for layer, _, after in returned:
        if layer == "attention":
            parts["attention"] = AttentionRecipe(after)  # type: ignore[arg-type]
        elif layer == "kv_cache":
            parts["kv_cache"] = CacheRecipe(after)  # type: ignore[arg-type]
        elif layer == "embedding":
            parts["embedding"] = TableRecipe(after)  # type: ignore[arg-type]
        else:
            method = "nearest" if after == "float" else None
            exceptions.append(LayerException(layer, after, reasons[layer], method))  # type: ignore[arg-type]
    name = recipe.name
    if len(exceptions) > len(recipe.layers) or parts:  # another recipe is not called the same
        name = f"{name.removesuffix(SUFFIX)}{SUFFIX}"
    return dataclasses.replace(recipe, name=name, layers=tuple(exceptions), **parts)
