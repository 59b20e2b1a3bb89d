"""Checkpoints -> the bundles that engines are built of: of the small sample, and of the full size.

WORK/checkpoint                    seeded random weights, full size
WORK/sample.float, model.float     for ONNX Runtime: what is quantized
WORK/sample.fp16, model.int4, ...  for TensorRT-RTX
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from .config import ROOT, Config
from .precisions import PRECISIONS

ModelName = Literal["sample", "model"]
SAMPLE = ROOT / "samples" / "reader"
PICTURES = ROOT / "samples" / "pictures"  # drawn ones, with questions
TARGET = "tensorrt-rtx"
SEED = 0
# Of the full size; its weights are noise, their ranges need few pictures.
NUM_CALIBRATION = 2


def find_checkpoint(config: Config, model: ModelName) -> Path:
    """The weights."""
    return SAMPLE if model == "sample" else config.work / "checkpoint"


def find_bundle(config: Config, model: ModelName, precision: str) -> Path:
    """The graphs, "float" or one of PRECISIONS."""
    return config.work / f"{model}.{precision}"


def make_model(config: Config) -> dict[str, Any]:
    """Write the random checkpoint."""
    from make_checkpoint import make_checkpoint

    folder = make_checkpoint(config.work / "checkpoint", config.size, SEED)
    return {"bytes": measure_folder(folder), "size": config.size, "seed": SEED}


def export_float(config: Config, model: ModelName) -> dict[str, Any]:
    """Export the bundle that is quantized: the full size in fp16, for half the disk."""
    from vlmedge.export.exporter import export_checkpoint
    from vlmedge.export.graphs.options import ExportOptions

    bundle = find_bundle(config, model, "float")
    options = ExportOptions("fp32" if model == "sample" else "fp16")
    export_checkpoint(find_checkpoint(config, model), bundle, options)
    return {"bytes": measure_folder(bundle)}


def make_bundle(config: Config, model: ModelName, precision: str) -> dict[str, Any]:
    """Quantize where there is a recipe, and write the graphs for TensorRT-RTX."""
    from vlmedge.export.lowering.exporter import export_for_target
    from vlmedge.export.lowering.options import LoweringOptions

    recipe, dtype = PRECISIONS[precision].recipe, PRECISIONS[precision].dtype
    context = config.context if model == "model" else None
    source, seconds = find_checkpoint(config, model), {}
    bundle = find_bundle(config, model, precision)
    if recipe is not None:
        start = time.perf_counter()
        source = config.work / f"{model}.{precision}.quantized"
        quantize(config, model, recipe, source)
        seconds["quantize"] = time.perf_counter() - start
    start = time.perf_counter()
    export_for_target(source, bundle, LoweringOptions(TARGET, dtype, context))
    seconds["export"] = time.perf_counter() - start
    if recipe is not None:
        shutil.rmtree(source)  # gigabytes that nothing reads again
    return {"bytes": measure_folder(bundle), "seconds": seconds}


def quantize(config: Config, model: ModelName, recipe: str, target: Path) -> None:
    """The float bundle by a recipe, calibrated on the drawn pictures."""
    from vlmedge.quant.data.open_data import open_data
    from vlmedge.quant.quantize.quantize import quantize_bundle
    from vlmedge.quant.recipe.toml import parse_recipe

    chosen = parse_recipe(recipe, "precisions.py")
    limit = NUM_CALIBRATION if model == "model" else None
    data = open_data(str(PICTURES), limit=limit) if chosen.needs_data else None
    quantize_bundle(find_bundle(config, model, "float"), target, chosen, data)


def measure_folder(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
