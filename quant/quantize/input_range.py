"""Find the static range of one layer's quantized input, with outliers migrated or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..graph.folding import Fold
from ..recipe.recipe import LinearRecipe
from ..rounding import fp8, int8
from ..rounding.activations import LayerInput
from ..rounding.histogram import ActivationStats
from ..rounding.ranges import RangeFormat, find_amax
from ..rounding.smooth import (
    MAX_OUTPUTS,
    MAX_ROWS,
    STRENGTHS,
    find_input_amax,
    round_input,
    round_weight,
    search_strength,
    spread,
)


@dataclass(frozen=True, slots=True)
class InputRange:
    """The range of one layer's input, and the question it answers.

    Attributes:
        format, ranges, percentile, smooth, wants_shift: as the recipe has them.
        amax: the input, after its migration, is quantized in [-amax, amax].
        shift: float32[K], subtracted from the divided input; None: nothing.
        strength: of the migration; None: none.
        scales: float32[K], powers of two, by which the input is divided; None: by nothing.
        error, error_without: relative error of the layer's output as chosen, and with neither
            migration nor shift; 0 where none was tried.
    """

    format: str
    ranges: str
    percentile: float
    smooth: str
    wants_shift: str
    amax: float
    shift: NDArray[np.float32] | None = None
    strength: float | None = None
    scales: NDArray[np.float32] | None = None
    error: float = 0.0
    error_without: float = 0.0

    def answers(self, recipe: LinearRecipe) -> bool:
        """Whether it was found for the same question."""
        found = (self.format, self.ranges, self.percentile, self.smooth, self.wants_shift)
        return ask(recipe) == found


def ask(recipe: LinearRecipe) -> tuple[str, str, float, str, str]:
    """The question that a recipe puts to calibration, as InputRange begins with it."""
    shift = recipe.shift if recipe.format == "int8" else "off"  # FP8 has its steps around 0
    return (recipe.format, recipe.ranges, recipe.percentile, str(recipe.smooth), shift)


def wants_shift(recipe: LinearRecipe) -> bool:
    """Whether centring is tried."""
    return ask(recipe)[-1] != "off"


def find_range(
    recipe: LinearRecipe,
    seen: LayerInput,
    matrix: NDArray[np.float32],
    fold: Fold | None,
    *,
    has_bias: bool,
) -> InputRange:
    """Choose a layer's range, with migration and shift where the recipe asks and they help.

    Args:
        recipe: of format int8 or fp8.
        seen: the layer's input.
        matrix: float32[N, K], its weight.
        fold: where scales go; None: nowhere.
        has_bias: whether the layer can give back what is subtracted.
    """
    format, rows = as_range_format(recipe), seen.rows
    plain = _Trial(None, np.ones(rows.shape[1], np.float32), None)
    trials = [plain]
    if fold is not None and recipe.smooth != "off":
        found = search_strength(
            rows,
            matrix,
            format,
            method=recipe.ranges,
            percentile=recipe.percentile,
            channel_amax=seen.stats.channel_amax,
            channels=fold.channels,
            strengths=STRENGTHS if recipe.smooth == "search" else [float(recipe.smooth)],
        )
        if found.strength is not None:
            trials.append(_Trial(found.strength, found.scales, None))
    if wants_shift(recipe) and has_bias:
        trials += [t._replace(shift=(seen.low + seen.high) / 2 / t.scales) for t in trials]
    if len(trials) == 1:
        return InputRange(*ask(recipe), amax=_measure(recipe, seen, matrix, plain))
    tried = [(*_measure_error(recipe, seen, matrix, trial), trial) for trial in trials]
    error, amax, best = min(tried, key=lambda found: found[0])
    return InputRange(
        *ask(recipe),
        amax=amax,
        shift=best.shift,
        strength=best.strength,
        scales=None if best.strength is None else best.scales,
        error=error,
        error_without=tried[0][0],
    )


class _Trial(NamedTuple):
    """A way to change a layer's input before it is rounded.

    The shift is halfway between each channel's extremes: with one range for all channels that
    makes it smallest (Outlier Suppression+, arXiv 2304.09145), and of a GELU's output, which has
    next to no negative half, it takes half.
    """

    strength: float | None
    scales: NDArray[np.float32]
    shift: NDArray[np.float32] | None


def _measure(
    recipe: LinearRecipe, seen: LayerInput, matrix: NDArray[np.float32], trial: _Trial
) -> float:
    """The range of a trial's input: over all rows where statistics tell, else over those kept."""
    if recipe.ranges != "mse" and trial.shift is None and trial.strength is None:
        return plain_range(recipe, seen.stats)
    if recipe.ranges == "minmax":
        amax = seen.stats.channel_amax if trial.shift is None else (seen.high - seen.low) / 2
        return float((amax / trial.scales).max(initial=0))
    amax = find_input_amax(
        _apply(trial, seen.rows),
        matrix * trial.scales,
        as_range_format(recipe),
        recipe.ranges,
        recipe.percentile,
    )
    assert amax is not None  # static formats have one
    return amax


def _measure_error(
    recipe: LinearRecipe, seen: LayerInput, matrix: NDArray[np.float32], trial: _Trial
) -> tuple[float, float]:
    """Relative error of some outputs for some rows with a trial's range, and the range."""
    format, amax = as_range_format(recipe), _measure(recipe, seen, matrix, trial)
    rows, outputs = spread(seen.rows, MAX_ROWS), spread(matrix, MAX_OUTPUTS)
    changed, migrated = _apply(trial, rows), outputs * trial.scales
    got = round_input(changed, format, amax) @ round_weight(migrated, format).T
    off = np.linalg.norm(changed @ migrated.T - got)  # what is subtracted comes back exactly
    size = np.linalg.norm(rows @ outputs.T)
    return float(off / size) if size else 0.0, amax


def _apply(trial: _Trial, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    divided = rows / trial.scales
    return divided if trial.shift is None else divided - trial.shift


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
