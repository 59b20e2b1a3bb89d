"""The linear layers of one stage, with what calibration saw of them -> their quantized numbers.

In two passes: first every layer's outliers are migrated, which changes norms and the rows of other
layers of the stage, then every layer is rounded as it stands after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import awq, fp8, gptq, int8
from .activations import LayerInput
from .calibration import LayerCalibration, MigrationRecord
from .folding import Fold
from .forms import QuantizedLinear
from .histogram import Histogram
from .layer_error import ERROR_ROWS, LayerError, find_input_scale, measure_error
from .linears import GraphWeights
from .plan import LayerPlan
from .recipe import STATIC, WEIGHT_ONLY, LinearRecipe
from .smooth import search_strength, spread
from .stage_weights import StageWeights
from .weight_only import pack_rows


@dataclass(slots=True)
class StageResult:
    """What the layers of a stage became.

    Attributes:
        linears: by name; float layers are left out.
        replaced: float initializers with other values than the float bundle's.
        calibration: by name, of the layers that were calibrated.
        errors: by name, of the layers whose input was seen.
        scales: by name, what inputs are divided by, float32[K]; layers left alone are left out.
    """

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    replaced: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    calibration: dict[str, LayerCalibration] = field(default_factory=dict)
    errors: dict[str, LayerError] = field(default_factory=dict)
    scales: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class StageQuantizer:
    """Weights of one stage while they are changed."""

    def __init__(self, weights: GraphWeights, folds: Mapping[str, Fold]) -> None:
        self._weights = weights
        self._folds = folds

    def quantize(
        self,
        plans: Sequence[LayerPlan],
        inputs: Mapping[str, LayerInput],
        known: Mapping[str, LayerCalibration],
    ) -> StageResult:
        """Quantize one stage.

        Args:
            plans: all linear layers of the stage, float ones too: scales fold into them.
            inputs: by name, what was seen; empty where the recipe needs nothing.
            known: calibration of an earlier run, used where nothing was seen.

        Raises:
            ValueError: names the layer: values that are not finite, or calibration that the recipe
                needs and nobody gave.
        """
        result = StageResult()
        state = StageWeights(self._weights, {plan.linear.name: plan for plan in plans})
        originals = {}
        for plan in plans:
            name = plan.linear.name
            try:
                if name in inputs and plan.recipe.format != "float":
                    originals[name] = spread(state.matrix(name), ERROR_ROWS)
                scales, calibration = self._migrate(plan, state, inputs.get(name), known.get(name))
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from error
            state.scales[name] = scales
            if scales is not None:
                result.scales[name] = scales
            if calibration is not None:
                result.calibration[name] = calibration
        for plan in plans:
            name = plan.linear.name
            if plan.recipe.format == "float":
                continue
            try:
                quantized = _round(plan, state, inputs.get(name), result.calibration.get(name))
                result.linears[name] = quantized
                if name in inputs:
                    result.errors[name] = measure_error(
                        plan.recipe,
                        inputs[name].rows,
                        originals[name],
                        spread(state.matrix(name), ERROR_ROWS),
                        quantized,
                        state.scales[name],
                        result.calibration.get(name),
                    )
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from error
        result.replaced = state.list_replaced(result.linears)
        return result

    def _migrate(
        self,
        plan: LayerPlan,
        state: StageWeights,
        seen: LayerInput | None,
        known: LayerCalibration | None,
    ) -> tuple[NDArray[np.float32] | None, LayerCalibration | None]:
        """Choose and fold the scales of one layer's input; None where it stays as it is."""
        recipe, name = plan.recipe, plan.linear.name
        fold = self._folds.get(name)
        calibration = None
        scales: NDArray[np.float32] | None = None
        if recipe.format in STATIC:
            if seen is not None:
                calibration = _calibrate(recipe, seen, state.matrix(name), fold)
            elif known is not None:
                calibration = _check_known(recipe, known, fold)
            else:
                raise ValueError("static scales need calibration: give --data or --calibration")
            if calibration.migration is not None:
                scales = calibration.migration.scales
        elif recipe.method == "awq" and recipe.format in WEIGHT_ONLY and fold is not None:
            if seen is None:
                raise ValueError("awq looks at activations: give --data")
            found = awq.search_scales(
                seen.rows,
                state.matrix(name),
                WEIGHT_ONLY[recipe.format],
                recipe.block_size,
                channels=fold.channels,
            )
            scales = found.scales
        if scales is None or fold is None or (scales == 1).all():
            return None, calibration
        state.fold(name, fold, scales)
        return scales, calibration


def _calibrate(
    recipe: LinearRecipe, seen: LayerInput, matrix: NDArray[np.float32], fold: Fold | None
) -> LayerCalibration:
    """Statistics of a layer, and the migration its recipe asks for."""
    stats = seen.stats
    if fold is None or recipe.smooth == "off":
        return LayerCalibration(stats)
    rows = seen.rows
    found = search_strength(
        rows,
        matrix,
        recipe.format,  # type: ignore[arg-type]  # static formats are among them
        method=recipe.ranges,
        channel_amax=stats.channel_amax,
        channels=fold.channels,
        **({} if recipe.smooth == "search" else {"strengths": [float(recipe.smooth)]}),
    )
    scales = found.scales
    record = MigrationRecord(
        format=recipe.format,
        ranges=recipe.ranges,
        strength=found.strength,
        error=found.errors[found.strength],
        error_without=found.errors[None],
        scales=scales,
        histogram=Histogram.of(rows / scales),
    )
    return LayerCalibration(stats, record)


def _check_known(
    recipe: LinearRecipe, known: LayerCalibration, fold: Fold | None
) -> LayerCalibration:
    """Calibration of an earlier run, if it is of the same question."""
    if fold is None or recipe.smooth == "off":
        return LayerCalibration(known.stats)
    found = known.migration
    if found is None or (found.format, found.ranges) != (recipe.format, recipe.ranges):
        raise ValueError(
            f"the calibration file has no migration for {recipe.format} with ranges "
            f"{recipe.ranges}: give --data as well"
        )
    return known


def _round(
    plan: LayerPlan,
    state: StageWeights,
    seen: LayerInput | None,
    calibration: LayerCalibration | None,
) -> QuantizedLinear:
    """Round one layer's matrix, as it stands after all migrations."""
    recipe, name = plan.recipe, plan.linear.name
    matrix, bias = state.matrix(name), state.bias(name)
    scales = state.scales[name]
    if bits := WEIGHT_ONLY.get(recipe.format):
        if recipe.method == "gptq":
            moments = _scaled_moments(seen, scales)
            codes, block_scales = gptq.quantize_blocks(matrix, moments, bits, recipe.block_size)
        else:
            codes, block_scales = pack_rows(matrix, bits, recipe.block_size)
        return QuantizedLinear(recipe, codes, block_scales, bias=bias)
    input_scale = None if calibration is None else find_input_scale(recipe, calibration)
    if recipe.format == "fp8":
        row_scales = fp8.channel_scales(matrix)
        codes = fp8.quantize(matrix, row_scales).view(np.uint8)
        return QuantizedLinear(recipe, codes, row_scales, input_scale, bias)
    column_weights = None
    if calibration is not None:
        column_weights = calibration.stats.channel_mean_square
        column_weights = column_weights if scales is None else column_weights / scales**2
    row_scales = int8.channel_scales(matrix, int8.search_clip(matrix, column_weights))
    if recipe.method == "gptq":
        codes = gptq.quantize_rows(matrix, _scaled_moments(seen, scales), row_scales)
    else:
        codes = int8.quantize(matrix, row_scales)
    return QuantizedLinear(recipe, codes, row_scales, input_scale, bias)


def _scaled_moments(
    seen: LayerInput | None, scales: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    if seen is None:
        raise ValueError("gptq looks at activations: give --data")
    moments = seen.moments
    return moments if scales is None else moments / np.outer(scales, scales)
