"""Quantize the linear layers of one stage, with what calibration saw of them.

In two passes: first every layer's outliers are migrated, which changes norms and the rows of other
layers of the stage, then every layer is rounded as it stands after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..graph.folding import Fold
from ..graph.linears import GraphWeights
from ..recipe.recipe import STATIC, WEIGHT_ONLY, LinearRecipe, scales_channels, uses_moments
from ..rounding import awq, fp8, gptq, int8
from ..rounding.activations import LayerInput
from ..rounding.block_scales import pack_searched
from ..rounding.histogram import ActivationStats
from ..rounding.smooth import spread
from ..rounding.weight_only import pack_rows
from .calibration import LayerCalibration
from .input_range import InputRange, ask, find_range, make_scale, plain_range, wants_shift
from .layer_error import ERROR_ROWS, LayerError, measure_error
from .linear_nodes import QuantizedLinear
from .plan import LayerPlan
from .stage_weights import StageWeights


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
                has_bias = plan.linear.bias is not None
                found = find_range(recipe, seen, state.matrix(name), fold, has_bias=has_bias)
                calibration = LayerCalibration(seen.stats, found)
            elif known is not None:
                calibration = _check_known(recipe, known, fold)
            else:
                raise ValueError("static scales need calibration: give --data or --calibration")
            assert calibration.range is not None  # of every static layer
            scales = calibration.range.scales
        elif scales_channels(recipe.method) and recipe.format in WEIGHT_ONLY and fold is not None:
            if seen is None:
                raise ValueError("awq looks at activations: give --data")
            scales = awq.search_scales(
                seen.rows,
                state.matrix(name),
                WEIGHT_ONLY[recipe.format],
                recipe.block_size,
                channels=fold.channels,
                positive=recipe.has_positive_scales,
            ).scales
        if scales is None or fold is None or (scales == 1).all():
            return None, calibration
        state.fold(name, fold, scales)
        return scales, calibration


def _check_known(
    recipe: LinearRecipe, known: LayerCalibration, fold: Fold | None
) -> LayerCalibration:
    """Calibration of an earlier run, if it can answer this recipe's question."""
    if known.range is not None and known.range.answers(recipe):
        return known
    if (fold is not None and recipe.smooth != "off") or wants_shift(recipe):
        raise ValueError(
            f"the calibration file has no range of {recipe.format} by {recipe.ranges} with its "
            "migration: give --data as well"
        )
    found = InputRange(*ask(recipe), amax=plain_range(recipe, known.stats))
    return LayerCalibration(known.stats, found)


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
        codes, block_scales = _round_blocks(recipe, bits, matrix, seen, scales)
        return QuantizedLinear(recipe, codes, block_scales, bias=bias)
    found = calibration.range if calibration else None
    input_scale = make_scale(recipe, found.amax) if found else None
    if recipe.format == "fp8":
        row_scales = fp8.channel_scales(matrix)
        codes = fp8.quantize(matrix, row_scales).view(np.uint8)
        return QuantizedLinear(recipe, codes, row_scales, input_scale, bias)
    shift = found.shift if found else None
    weights = None if calibration is None else weigh_columns(calibration.stats, scales)
    row_scales = int8.channel_scales(matrix, int8.search_clip(matrix, weights))
    if uses_moments(recipe.method):
        codes = gptq.quantize_rows(matrix, _need(seen).moments(scales, shift), row_scales)
    else:
        codes = int8.quantize(matrix, row_scales)
    if shift is not None:
        assert bias is not None  # else nothing would have been shifted
        bias = np.add(bias, matrix @ shift, dtype=np.float32)
    return QuantizedLinear(recipe, codes, row_scales, input_scale, bias, shift)


def weigh_columns(
    stats: ActivationStats, scales: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Mean squares of the migrated input's channels: what an error in each column costs.

    Args:
        stats: of the input before it was migrated.
        scales: float32[in], what its channels were divided by; None: nothing was.

    Returns:
        float32[in].
    """
    divisor = np.float32(1) if scales is None else np.square(scales)
    return np.divide(stats.channel_mean_square, divisor, dtype=np.float32)


def _round_blocks(
    recipe: LinearRecipe,
    bits: int,
    matrix: NDArray[np.float32],
    seen: LayerInput | None,
    scales: NDArray[np.float32] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Packed codes and their scales, by the recipe's method."""
    size, positive = recipe.block_size, recipe.has_positive_scales
    if uses_moments(recipe.method):
        moments = _need(seen).moments(scales)
        return gptq.quantize_blocks(matrix, moments, bits, size, positive=positive)
    if recipe.method == "awq":
        weights = weigh_columns(_need(seen).stats, scales)
        return pack_searched(matrix, bits, size, weights, positive=positive)
    return pack_rows(matrix, bits, size, positive=positive)


def _need(seen: LayerInput | None) -> LayerInput:
    if seen is None:
        raise ValueError("a calibrated rounding looks at activations: give --data")
    return seen
