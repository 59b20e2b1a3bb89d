"""Decide by the recipe what becomes of each layer of a bundle, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..graph.linears import Linear
from ..recipe.recipe import (
    WEIGHT_ONLY,
    LinearRecipe,
    Recipe,
    TableRecipe,
    check_linear,
    check_shared,
    merge_exception,
)

LM_HEAD = "lm_head"
BY_RECIPE = "recipe"
TWO_MATRICES = "fallback: the lm_head is another matrix"


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What becomes of one linear layer.

    Attributes:
        graph: "vision" (which vision_video shares the weights of) or "decoder".
        reason: "recipe", an exception's own, or "fallback: ...".
    """

    linear: Linear
    graph: str
    recipe: LinearRecipe
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every linear layer, by name, in the order they run.

    Attributes:
        recipe: as it fits the model; see `fit_table`.
        table_reason: why the embedding table has its format: "recipe" or "fallback: ...".
    """

    recipe: Recipe
    layers: Mapping[str, LayerPlan]
    table_reason: str = BY_RECIPE

    def of_graph(self, graph: str) -> list[LayerPlan]:
        """The layers of one graph."""
        return [layer for layer in self.layers.values() if layer.graph == graph]


def make_plan(recipe: Recipe, linears: Mapping[str, Sequence[Linear]]) -> Plan:
    """Decide for every layer.

    Args:
        recipe: a checked recipe.
        linears: of the graphs "vision" and "decoder".

    Raises:
        ValueError: a pattern that fits no layer: a silent miss would leave layers unprotected; or
            an exception that doesn't go with the rest of its layer's recipe.
    """
    layers: dict[str, LayerPlan] = {}
    unused = set(range(len(recipe.layers)))
    for graph, found in linears.items():
        for linear in found:
            part, reason = _choose_part(recipe, graph, linear.name), BY_RECIPE
            for i, exception in enumerate(recipe.layers):
                if fnmatchcase(linear.name, exception.pattern):
                    unused.discard(i)
                    part, reason = merge_exception(part, exception), exception.reason
            check_linear(part, f"recipe {recipe.name}: {linear.name}")
            part, fallback = _fit(part, linear)
            layers[linear.name] = LayerPlan(linear, graph, part, fallback or reason)
    if unused:
        pattern = recipe.layers[min(unused)].pattern
        raise ValueError(
            f"recipe {recipe.name}: pattern {pattern!r} fits no layer of this model; it has "
            f"{_list_kinds(layers)}"
        )
    if recipe.embedding.format == "lm_head":
        check_shared(layers[LM_HEAD].recipe, f"recipe {recipe.name}")
    return Plan(recipe, layers)


def fit_table(recipe: Recipe, *, is_tied: bool) -> tuple[Recipe, str]:
    """A recipe whose table the model can have, and why the table is what it is.

    "lm_head" saves the table where both are one matrix, as in the 2B. Where they are two (7B, 72B)
    the table becomes int8 with a scale a row, the nearest in size and accuracy.
    """
    if recipe.embedding.format != "lm_head" or is_tied:
        return recipe, BY_RECIPE
    return dataclasses.replace(recipe, embedding=TableRecipe("int8")), TWO_MATRICES


def _choose_part(recipe: Recipe, graph: str, name: str) -> LinearRecipe:
    if name == LM_HEAD:
        return recipe.lm_head
    return recipe.vision if graph == "vision" else recipe.decoder


def _fit(recipe: LinearRecipe, linear: Linear) -> tuple[LinearRecipe, str | None]:
    """What a layer's shape allows: standard blocks must fill its rows."""
    is_blocked = recipe.format in WEIGHT_ONLY and recipe.layout == "qdq"
    if is_blocked and linear.in_features % recipe.block_size:
        reason = f"fallback: {linear.in_features} inputs are no multiple of {recipe.block_size}"
        return dataclasses.replace(recipe, format="float"), reason
    return recipe, None


def _list_kinds(layers: Mapping[str, LayerPlan]) -> str:
    """Layer names with their numbers left open, each once."""
    kinds = [".".join("N" if part.isdigit() else part for part in n.split(".")) for n in layers]
    return ", ".join(dict.fromkeys(kinds))
