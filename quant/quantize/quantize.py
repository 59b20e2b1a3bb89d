"""Quantize a float bundle by a recipe, on real pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ...runtime import __version__
from ...runtime.bundle.manifest import Manifest, QuantizationRecord
from ...runtime.files.plain_text import check_plain
from ..data.examples import DataSet
from ..data.pictures import list_parts
from ..files.bundle_target import check_target
from ..files.source_stamp import read_stamped
from ..files.target_lock import locked_target
from ..files.verified import verify_bundle
from ..graph.feeds import make_prompts
from ..graph.files import read_graph
from ..graph.linears import GraphWeights, list_carried, list_linears
from ..recipe.recipe import Recipe
from ..recipe.toml import format_recipe
from .bundle import build_bundle
from .calibration import (
    Calibration,
    hash_file,
    hash_files,
    hash_model,
    read_calibration,
    write_calibration,
)
from .embedding_table import is_tied
from .float16_calibration import find_over_float16
from .layer_error import LayerError
from .model_quantizer import ModelQuantizer, Progress
from .plan import Plan, fit_table, make_plan
from .work_folder import WorkFolder

TOOLS = ("onnx", "onnxruntime", "numpy", "ml_dtypes")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a quantization made.

    Attributes:
        errors: by layer, relative error of its output on calibration rows.
        resumed: stages that an earlier, interrupted run had finished.
        over_float16: by layer, its largest input of those that float16 can't hold.
    """

    manifest: Manifest
    plan: Plan
    errors: dict[str, LayerError]
    resumed: int
    over_float16: dict[str, float]


def plan_bundle(source: Path, manifest: Manifest, recipe: Recipe) -> Plan:
    """What a recipe makes of a float bundle's layers.

    Raises:
        BundleError: the bundle is quantized already, or damaged.
        ValueError: a pattern of the recipe fits no layer.
    """
    graphs = {name: read_graph(source, manifest, name) for name in ("vision", "decoder")}
    carried = list_carried(manifest)
    linears = {name: list_linears(model.graph, carried) for name, model in graphs.items()}
    plan = make_plan(recipe, linears)
    if recipe.embedding.format != "lm_head":
        return plan
    weights = GraphWeights(source, graphs["decoder"])
    recipe, reason = fit_table(recipe, is_tied=is_tied(source, manifest.embedding, weights))
    return dataclasses.replace(plan, recipe=recipe, table_reason=reason)


def check_data(recipe: Recipe, *, has_data: bool) -> None:
    """Refuse to go on without the data or calibration that a recipe needs.

    Raises:
        ValueError: says what to give.
    """
    if recipe.needs_data and not has_data:
        raise ValueError(
            f"recipe {recipe.name} needs real pictures to calibrate with: give --data (a folder of "
            "pictures, a .jsonl of messages, ...); nothing is ever calibrated on random data"
        )


def check_pictures(recipe: Recipe, data: DataSet) -> None:
    """Refuse data of texts alone where the ViT is calibrated.

    Raises:
        ValueError: no example has a picture or clip.
    """
    if recipe.needs_pictures and not any(any(list_parts(e)) for e in data.examples):
        raise ValueError(
            f"none of the {len(data.examples)} examples of {data.name} has a picture, which recipe "
            f"{recipe.name} needs to calibrate the ViT: give data with pictures, or a recipe whose "
            "ViT needs no calibration"
        )


def quantize_bundle(
    source: str | Path,
    target: str | Path,
    recipe: Recipe,
    data: DataSet | None = None,
    *,
    calibration_file: Path | None = None,
    num_threads: int = 0,
    progress: Progress | None = None,
    advance: Callable[[int], None] | None = None,
) -> Quantization:
    """Quantize a bundle.

    Args:
        source: a float bundle, as `vlmedge export --weights fp32` or `fp16` writes it.
        target: the folder to write; an old bundle is replaced at the end. One run at a time.
        recipe: what becomes of its layers.
        data: pictures and prompts to calibrate with; None: the recipe needs none, or the
            calibration file has what it needs.
        calibration_file: read if there is no data, written if there is.
        num_threads: of one operator; 0: all cores.
        progress: called before each stage; before the first, in MiB, while hashes are compared.
        advance: called with a number of bytes of the bundle just written.

    Raises:
        ValueError: the recipe doesn't fit the model, or needs data that nobody gave; the bundle
            or a picture changed meanwhile; the target is no place for a bundle, or another process
            writes it.
        BundleError: the bundle is quantized already, or damaged.
        OSError: no space, or a failing disk; the finished stages are kept for the next run.
    """
    folder, bundle = Path(source), Path(target)
    check_target(bundle, folder, *([calibration_file] if calibration_file else []))
    if data is not None:
        check_plain(data.name, "the data's name")  # which goes into the manifest
    with locked_target(bundle):
        return _quantize(
            folder, bundle, recipe, data, calibration_file, num_threads, progress, advance
        )


def _quantize(
    folder: Path,
    bundle: Path,
    recipe: Recipe,
    data: DataSet | None,
    calibration_file: Path | None,
    num_threads: int,
    progress: Progress | None,
    advance: Callable[[int], None] | None,
) -> Quantization:
    manifest, stamp = read_stamped(folder)
    verify_bundle(folder, manifest, progress)
    plan = plan_bundle(folder, manifest, recipe)
    model = hash_model(manifest)
    known = None
    if data is None and calibration_file is not None:
        known = read_calibration(calibration_file, model)
    check_data(recipe, has_data=data is not None or known is not None)
    if data is not None:
        check_pictures(recipe, data)
    prompts = make_prompts(folder, manifest, data.examples) if data else []
    if data:
        data.stamp.check()  # its hash is recorded, so its pictures must be those that were hashed
    data_hash = data.sha256 if data else known.data_sha256 if known else None
    seen = hash_file(calibration_file) if known and calibration_file else data_hash or ""
    content = (format_recipe(recipe), model, hash_files(manifest), seen, __version__)
    work = WorkFolder(bundle, *content, before_save=stamp.check)
    work.remove_others()
    quantized = ModelQuantizer(
        folder,
        manifest,
        plan,
        prompts=prompts,
        known=known.layers if known else None,
        work=work,
        num_threads=num_threads,
        progress=progress,
    ).run()
    if data is not None and calibration_file is not None:
        found = Calibration(
            model, data.name, data.sha256, len(data.examples), quantized.calibration
        )
        write_calibration(calibration_file, found)
    record = QuantizationRecord(
        recipe=recipe.name,
        recipe_toml=format_recipe(recipe),
        data=data.name if data else known.data if known else None,
        data_sha256=data_hash,
        versions={"vlmedge": __version__} | {name: version(name) for name in TOOLS},
    )
    made = build_bundle(
        *(folder, manifest, quantized, record, bundle, advance or (lambda _: None)),
        before_publishing=stamp.check,
    )
    errors = quantized.errors
    over = find_over_float16(quantized.calibration)
    work.remove()
    return Quantization(made, plan, errors, quantized.resumed, over)
