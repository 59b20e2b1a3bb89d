"""Run a bundle and its reference on the same examples, and collect every difference by level.

The reference is observed first and closed; the bundle is then observed on the same examples, once
forced along the reference's answers and once left to itself. Layers are compared on a few of them.
Speed is measured last, when nothing else is loaded, with both bundles side by side; a checkpoint
has no speed to compare with.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import onnxruntime as ort

from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.errors import VlmedgeError
from ...runtime.threads import count_cpus
from ..compare.diff import Traced, compare_layers, find_not_finite, trace_reference
from ..compare.findings import (
    CheckResult,
    EmbeddingFinding,
    LayerFinding,
    LogitFinding,
    RangeFinding,
    SettingFinding,
    TextFinding,
)
from ..compare.layer_rows import LayerTracer, RowShelf
from ..compare.layer_walk import LayeredBundle
from ..compare.observe import BundleSide
from ..compare.reference import NotFiniteError, Observation, Shelf, Side, is_bundle, open_checkpoint
from ..compare.settings import Settings, compare_settings
from ..compare.shelf import ArrayShelf
from ..data.examples import DataSet, Example
from ..files.verified import verify_bundle
from .levels import (
    check_finite,
    compare_forced,
    compare_texts,
    compare_visuals,
    score_tasks,
)
from .plan import CheckPlan, Level, choose_levels
from .speed import count_speed_steps, measure_speed
from .value_range import (
    MAX_EXAMPLES,
    computes_in_float16,
    describe_overflow,
    measure_ranges,
)

_OBSERVED = ("embeddings", "logits", "texts", "tasks")
_ANSWERED = ("logits", "texts", "tasks")
LAYER_EXAMPLES = 8  # spread over the data; layers are walked through with them
SPEED_EXAMPLES = 4  # likewise; each is asked in every run
_LAYER_STEPS = 2  # one a side
# (steps done, of how many, what is done now)
OnProgress = Callable[[int, int, str], None]


def run_check(
    bundle: str | Path,
    against: str | Path,
    data: DataSet,
    plan: CheckPlan,
    on_progress: OnProgress = lambda done, total, name: None,
) -> CheckResult:
    """Compare a bundle with a reference.

    Args:
        bundle: the folder to judge.
        against: a bundle's folder, or a checkpoint (folder or hub id) for transformers.
        data: what both are asked.
        plan: what is compared.
        on_progress: told before each step.

    Raises:
        ValueError: a missing or damaged side, a level that can't be compared, NaN in an output.
        BackendError: there is no engine, or nothing that opens checkpoints.
        OSError: no room for the reference's outputs.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)  # what is wrong is told before the reference is loaded
    levels = choose_levels(plan, data, with_bundle=is_bundle(against))
    run = _Run(folder, str(against), data.examples, levels, plan, on_progress)
    verified = [verify_bundle(folder, manifest, run.tell_hashes)]
    if is_bundle(against):
        verified.append(verify_bundle(Path(against), read_manifest(against), run.tell_hashes))
    if computes_in_float16(manifest):
        run.measure_ranges()
    with ArrayShelf() as arrays:
        shelf = Shelf(arrays)
        reference, needed, traced = run.observe_reference(shelf, RowShelf(arrays))
        texts, settings = run.observe_bundle(shelf, needed)
        if traced is not None:
            run.compare_layers(traced)
    speed = ()
    if "speed" in levels:
        speed = measure_speed(
            folder,
            Path(against),
            pick_evenly(data.examples, SPEED_EXAMPLES),
            num_runs=plan.num_speed_runs,
            num_threads=plan.num_threads,
            on_step=run.step,
        )
    for side in verified:
        side.check_unchanged()
    return CheckResult(
        bundle=folder.absolute().name,
        reference=reference,
        data=data.name,
        data_sha256=data.sha256,
        num_examples=len(data.examples),
        skipped=dict(data.skipped),
        settings=settings,
        embeddings=tuple(run.embeddings),
        logits=tuple(run.logits),
        texts=tuple(texts) if "texts" in levels else (),
        tasks=score_tasks(data.examples, texts) if "tasks" in levels else (),
        speed=speed,
        layers=run.layers,
        ranges=run.ranges,
        environment=describe_environment(plan.num_threads) | run.decoding,
    )


def describe_environment(num_threads: int | None) -> dict[str, str]:
    """Versions and machine, for reports."""
    return {
        "vlmedge": version("vlmedge"),
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(num_threads or count_cpus()),
        "provider": "CPUExecutionProvider",
    }


def pick_evenly(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of them, from all over the data."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


class _Run:
    """One check on its way, with what it has found so far."""

    def __init__(
        self,
        bundle: Path,
        against: str,
        examples: Sequence[Example],
        levels: Sequence[Level],
        plan: CheckPlan,
        on_progress: OnProgress,
    ) -> None:
        self.embeddings: list[EmbeddingFinding] = []
        self.logits: list[LogitFinding] = []
        self.layers: tuple[LayerFinding, ...] = ()
        self.ranges: tuple[RangeFinding, ...] = ()
        self.decoding: dict[str, str] = {}
        self._bundle, self._against, self._examples = bundle, against, examples
        self._levels, self._plan, self._on_progress = set(levels), plan, on_progress
        self._is_observed = bool(self._levels & set(_OBSERVED))
        self._max_new_tokens = plan.max_new_tokens if self._levels & set(_ANSWERED) else 0
        self._done = 0
        self._total = 2 * len(examples) if self._is_observed else 0
        if "layers" in levels:
            self._total += _LAYER_STEPS
        if "speed" in levels:
            self._total += count_speed_steps(
                min(len(examples), SPEED_EXAMPLES), plan.num_speed_runs
            )

    def step(self, name: str) -> None:
        """Tell that a step begins."""
        self._on_progress(self._done, self._total, name)
        self._done += 1

    def measure_ranges(self) -> None:
        """Find what a device that computes in float16 makes infinite."""
        self._tell(f"{self._bundle.name}: range of float16")
        chosen = pick_evenly(self._examples, MAX_EXAMPLES)
        threads = self._plan.num_threads or 0
        manifest = read_manifest(self._bundle)
        self.ranges = measure_ranges(self._bundle, manifest, chosen, num_threads=threads)

    def observe_reference(
        self, shelf: Shelf, rows: RowShelf
    ) -> tuple[str, Settings, Traced | None]:
        """Fill the shelves; the reference's name and settings, and its layers where wanted."""
        threads = self._plan.num_threads
        side: Side
        tracer: LayerTracer
        if is_bundle(self._against):
            side, tracer = BundleSide(self._against, threads), LayeredBundle(self._against, threads)
        else:
            side = tracer = open_checkpoint(self._against, self._bundle, threads)
        traced = None
        try:
            settings = side.settings
            self._tell_decoding("answers of the reference", side)
            for index, example in enumerate(self._examples if self._is_observed else ()):
                self.step(f"{side.name}: {example.id}")
                shelf.put(index, _observe(side, example, self._max_new_tokens))
            if "layers" in self._levels:
                self.step(f"{side.name}: layers")
                ours = LayeredBundle(self._bundle, threads)
                examples = pick_evenly(self._examples, LAYER_EXAMPLES)
                traced = trace_reference(ours, tracer, examples, rows, self._tell)
        finally:
            side.close()
        return side.name, settings, traced

    def observe_bundle(
        self, shelf: Shelf, needed_settings: Settings
    ) -> tuple[list[TextFinding], tuple[SettingFinding, ...]]:
        """Compare the settings and what is made of the examples; answers to be scored, settings."""
        texts: list[TextFinding] = []
        side = BundleSide(self._bundle, self._plan.num_threads)
        try:
            settings = compare_settings(side.settings, needed_settings)
            is_budget_equal = all(one.is_equal for one in settings if one.is_of_pictures)
            self._tell_decoding("answers of the bundle", side)
            for index, example in enumerate(self._examples if self._is_observed else ()):
                self.step(f"{side.name}: {example.id}")
                needed = shelf.take(index)
                got = self._observe_forced(side, example, needed.token_ids)
                if "embeddings" in self._levels:
                    self.embeddings += compare_visuals(
                        example, got, needed, is_budget_equal=is_budget_equal
                    )
                if "logits" in self._levels:
                    self.logits.append(compare_forced(example, got, needed))
                if self._max_new_tokens:
                    texts.append(compare_texts(example, got, needed))
        finally:
            side.close()
        return texts, settings

    def _tell_decoding(self, key: str, side: Side) -> None:
        if self._max_new_tokens:
            self.decoding[key] = f"{side.decoding}, at most {self._max_new_tokens} tokens"

    def _observe_forced(
        self, side: BundleSide, example: Example, forced: Sequence[int]
    ) -> Observation:
        """The bundle on one example; where it gives no numbers, the layer is named."""
        try:
            return _observe(side, example, self._max_new_tokens, forced)
        except NotFiniteError as error:
            where = describe_overflow(self.ranges) or find_not_finite(self._bundle, example)
            raise ValueError(f"{error}; {where}" if where else str(error)) from error

    def compare_layers(self, traced: Traced) -> None:
        """Walk through the bundle."""
        self.step(f"{self._bundle.name}: layers")
        ours = LayeredBundle(self._bundle, self._plan.num_threads)
        self.layers = compare_layers(ours, traced, self._tell)

    def tell_hashes(self, done: int, total: int, name: str) -> None:
        """Tell of what is before the first step; in MiB."""
        self._tell(f"{name}, {done} of {total} MiB")

    def _tell(self, name: str) -> None:
        """Tell what a step is about just now."""
        self._on_progress(max(0, self._done - 1), self._total, name)


def _observe(
    side: Side, example: Example, max_new_tokens: int, forced: Sequence[int] = ()
) -> Observation:
    try:
        if isinstance(side, BundleSide):
            seen = side.observe(example, max_new_tokens, forced=forced)
        else:
            seen = side.observe(example, max_new_tokens)
        check_finite(seen)
    except (VlmedgeError, ValueError) as error:
        kind = NotFiniteError if isinstance(error, NotFiniteError) else ValueError
        raise kind(f"{side.name}, example {example.id}: {error}") from error
    return seen
