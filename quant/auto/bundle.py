"""Write a bundle of layers that are quantized already, in any choice of their formats."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ...runtime import __version__
from ...runtime.bundle.manifest import Manifest, QuantizationRecord
from ..data.examples import DataSet
from ..quantize.bundle import build_bundle
from ..quantize.model_quantizer import QuantizedModel
from ..quantize.plan import Plan
from ..quantize.quantize import TOOLS
from ..recipe.toml import format_recipe
from ..sensitivity.mixer import Mixer


def assemble(mixer: Mixer, plan: Plan) -> QuantizedModel:
    """What a quantization by a plan gives; the mixer has every layer in the plan's format.

    Rows that a migration behind them divides have only their scales divided, which is what rounding
    them anew gives where the divisors are powers of two, as those of static formats are.
    """
    model = QuantizedModel(plan)
    for part in mixer.models:
        layers = plan.of_graph(part)
        choice = {layer.linear.name: layer.recipe.format for layer in layers}
        model.stages[part] = {
            stage: mixer.compose(part, stage, choice)
            for stage in dict.fromkeys(layer.linear.stage for layer in layers)
        }
    next(iter(model.stages["decoder"].values())).calibration |= mixer.observed
    return model


def write_assembled(
    source: Path, manifest: Manifest, mixer: Mixer, plan: Plan, data: DataSet, target: Path
) -> None:
    """Write the bundle.

    Raises:
        BundleError: the float bundle is damaged.
        OSError: no space, or a failing disk.
    """
    record = QuantizationRecord(
        recipe=plan.recipe.name,
        recipe_toml=format_recipe(plan.recipe),
        data=data.name,
        data_sha256=data.sha256,
        versions={"vlmedge": __version__} | {name: version(name) for name in TOOLS},
    )
    build_bundle(source, manifest, assemble(mixer, plan), record, target, lambda _: None)
