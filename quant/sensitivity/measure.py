"""Measure what the quantization of each layer does to the whole model.

Of every layer its own damage (it alone is quantized) and that of everything but it, at the merged
image embeddings and at the logits along the known answers, by picture size.

exact   really runs all of it: from the layer's stage on, everything before it is shared.
fast    runs each *stage* alone to the end, on some of the prompts, and shares its damage out to
        its layers by the power of the error that each makes by itself in what the stage hands on.
        Everything but a layer is what all do together less its own share: errors of different
        layers add up in power, as rounding errors do that know nothing of each other.

Finished stages are kept: a stopped run goes on behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...runtime import __version__
from ...runtime.bundle.manifest_file import read_manifest
from ..compare.measures import sqnr_from_norms
from ..data.examples import DataSet
from ..files.verified import verify_bundle
from ..graph.feeds import Prompt, make_prompts
from ..quantize.bundle import TABLE
from ..quantize.calibration import hash_model
from ..quantize.model_quantizer import ModelQuantizer, Progress, QuantizedModel
from ..quantize.quantize import check_pictures, plan_bundle
from ..quantize.work_folder import WorkFolder
from ..recipe.recipe import Recipe
from ..recipe.toml import format_recipe
from .damage import ALL, Buckets, Damages
from .mixer import Choice, Mixer
from .rows import RowFolder, SensitivityRow
from .stage_meter import StageMeter
from .variants import Trials

Mode = Literal["fast", "exact"]
FAST_PROMPTS = 16  # that the fast mode looks at, of all picture sizes alike


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What was found.

    Attributes:
        num_measured: examples that damage was measured on; the ranges come from all of them.
        buckets: picture sizes, "all" the last.
        total: damage of everything together.
        rows: in the order the layers run.
    """

    bundle: str
    recipe: str
    data: str
    data_sha256: str
    num_examples: int
    num_measured: int
    mode: Mode
    buckets: tuple[str, ...]
    total: Damages
    rows: tuple[SensitivityRow, ...]

    @property
    def ranked(self) -> list[SensitivityRow]:
        """The most harmful first: by what it does alone to the logits, then to the embeddings."""
        return sorted(self.rows, key=lambda row: _harm(row.alone), reverse=True)


def measure_sensitivity(
    source: str | Path,
    recipe: Recipe,
    data: DataSet,
    *,
    mode: Mode = "fast",
    work: Path,
    num_threads: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every layer that a recipe quantizes.

    Args:
        source: a float bundle.
        recipe: the formats to measure.
        data: pictures, prompts and, to compare logits along them, answers.
        mode: see the module.
        work: a folder for finished stages; they are removed when all is done.
        num_threads: of one operator; 0: all cores.
        progress: called before each stage, of the quantization first; before that, in MiB, while
            hashes are compared.

    Raises:
        ValueError: the recipe quantizes nothing, or doesn't fit the model.
        BundleError: the bundle is quantized already, or damaged.
        OSError: no space; what is finished is kept for the next run.
    """
    folder = Path(source)
    manifest = read_manifest(folder)
    verified = verify_bundle(folder, manifest, progress)
    check_pictures(recipe, data)
    plan = plan_bundle(folder, manifest, recipe)
    prompts = make_prompts(folder, manifest, data.examples)
    key = (format_recipe(recipe), hash_model(manifest), data.sha256, __version__)
    work.mkdir(parents=True, exist_ok=True)
    layers = WorkFolder(work / "layers", *key)
    quantized = ModelQuantizer(
        folder,
        manifest,
        plan,
        prompts=prompts,
        work=layers,
        num_threads=num_threads,
        progress=progress,
    ).run()
    mixer = Mixer(folder, manifest)
    mixer.add(quantized)
    choice = choose_all(mixer, plan.recipe)
    if not choice:
        raise ValueError(f"recipe {recipe.name} quantizes nothing: there is no damage to measure")
    buckets = Buckets(manifest)
    measured = prompts if mode == "exact" else pick_prompts(prompts, buckets, FAST_PROMPTS)
    trials = Trials(
        folder,
        manifest,
        mixer,
        measured,
        keep_qdq=needs_plain_qdq(choice),
        num_threads=num_threads,
    )
    rows = RowFolder(work / "rows", *key, mode)
    meter = StageMeter(trials, mixer, buckets, choice, find_own_sqnr(quantized), rows, progress)
    total, found = meter.run(mode)
    names = buckets.sort({bucket for row in found for bucket in row.alone} | {ALL})
    result = Sensitivity(
        bundle=folder.absolute().name,
        recipe=recipe.name,
        data=data.name,
        data_sha256=data.sha256,
        num_examples=len(prompts),
        num_measured=len(measured),
        mode=mode,
        buckets=tuple(names),
        total=total,
        rows=tuple(found),
    )
    verified.check_unchanged()
    rows.remove()
    layers.remove()
    return result


def choose_all(mixer: Mixer, recipe: Recipe) -> Choice:
    """Everything that the mixer has, in its one format, and the table."""
    names = {
        name: formats[0]
        for part in mixer.models
        for name in mixer.list_all(part)
        if (formats := mixer.list_formats(name))
    }
    table = recipe.embedding.format
    return names if table == "float" else {TABLE: table, **names}


def needs_plain_qdq(choice: Choice) -> bool:
    """Whether ONNX Runtime must run Q/DQ as it stands: there is FP8."""
    return any(format == "fp8" for name, format in choice.items() if name != TABLE)


def pick_prompts(prompts: Sequence[Prompt], buckets: Buckets, count: int) -> list[Prompt]:
    """Some prompts, of each picture size in turn; in their order."""
    queues: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        queues.setdefault(buckets.name_prompt(prompt), []).append(index)
    chosen: list[int] = []
    while len(chosen) < min(count, len(prompts)):
        for queue in queues.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return [prompts[index] for index in sorted(chosen)]


def find_own_sqnr(quantized: QuantizedModel) -> dict[str, float]:
    """Layer -> signal to error ratio of its own output on calibration rows, dB."""
    return {name: sqnr_from_norms(1.0, error.chosen) for name, error in quantized.errors.items()}


def _harm(damages: Damages) -> tuple[float, float]:
    damage = damages[ALL]
    return damage.kl_mean or 0.0, damage.embeds_rel_l2 or 0.0
