"""One layer's calibrated input -> the static range it is quantized in, outliers migrated or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import fp8, int8
from .activations import LayerInput
from .folding import Fold
from .histogram import ActivationStats
from .ranges import RangeFormat, find_amax
from .recipe import LinearRecipe
from .smooth import STRENGTHS, find_input_amax, search_strength


@dataclass(frozen=True, slots=True)
class InputRange:
    """The range of one layer's input, and the question it answers.

    Attributes:
        format, ranges, percentile, smooth: as the recipe has them.
        amax: the input, after its migration, is quantized in [-amax, amax].
        strength: of the migration; None: none.
        scales: float32[K], powers of two, by which the input is divided; None: by nothing.
        error, error_without: relative error of the layer's output with and without migration;
            0 where none was tried.
    """

    format: str
    ranges: str
    percentile: float
    smooth: str
    amax: float
    strength: float | None = None
    scales: NDArray[np.float32] | None = None
    error: float = 0.0
    error_without: float = 0.0

    def answers(self, recipe: LinearRecipe) -> bool:
        """Whether it was found for the same question."""
        asked = (recipe.format, recipe.ranges, recipe.percentile, str(recipe.smooth))
        return asked == (self.format, self.ranges, self.percentile, self.smooth)


def find_range(
    recipe: LinearRecipe, seen: LayerInput, matrix: NDArray[np.float32], fold: Fold | None
) -> InputRange:
    """Choose a layer's range, and the migration if its recipe asks for one and it can be folded.

    Args:
        recipe: of format int8 or fp8.
        seen: the layer's input.
        matrix: float32[N, K], its weight.
        fold: where scales go; None: nowhere.
    """
    asked = (recipe.format, recipe.ranges, recipe.percentile, str(recipe.smooth))
    format = as_range_format(recipe)
    if fold is None or recipe.smooth == "off":
        amax = _measure(recipe, seen, seen.rows, matrix)
        return InputRange(*asked, amax=amax)
    found = search_strength(
        seen.rows,
        matrix,
        format,
        method=recipe.ranges,
        percentile=recipe.percentile,
        channel_amax=seen.stats.channel_amax,
        channels=fold.channels,
        strengths=STRENGTHS if recipe.smooth == "search" else [float(recipe.smooth)],
    )
    amax = found.amax
    if recipe.ranges == "minmax" or amax is None:  # the rows that were kept are not all
        amax = float((seen.stats.channel_amax / found.scales).max(initial=0))
    return InputRange(
        *asked,
        amax=amax,
        strength=found.strength,
        scales=None if found.strength is None else found.scales,
        error=found.errors[found.strength],
        error_without=found.errors[None],
    )


def plain_range(recipe: LinearRecipe, stats: ActivationStats) -> float:
    """The range without any migration, from statistics alone."""
    return find_amax(
        stats.histogram,
        recipe.ranges,
        format=as_range_format(recipe),
        percentile=recipe.percentile,
    )


def make_scale(recipe: LinearRecipe, amax: float) -> float:
    """The scale of an input with range [-amax, amax]."""
    return fp8.tensor_scale(amax) if recipe.format == "fp8" else int8.tensor_scale(amax)


def as_range_format(recipe: LinearRecipe) -> RangeFormat:
    """The recipe's format as ranges.py calls it."""
    return "fp8" if recipe.format == "fp8" else "int8"


def _measure(
    recipe: LinearRecipe,
    seen: LayerInput,
    rows: NDArray[np.float32],
    matrix: NDArray[np.float32],
) -> float:
    """Without migration: by the output's error if the method looks at errors, else of all rows."""
    if recipe.ranges != "mse":
        return plain_range(recipe, seen.stats)
    amax = find_input_amax(rows, matrix, as_range_format(recipe), "mse")
    assert amax is not None  # static formats have one
    return amax
