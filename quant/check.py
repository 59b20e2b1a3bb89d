"""A bundle beside its reference on the same examples -> everything that differs, level by level.

The reference answers first and is closed; the bundle is then observed on the same examples, once
forced along the reference's answers and once left to itself. Speed is measured last, when nothing
else is loaded, with both bundles side by side; a checkpoint has no speed to compare with.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import onnxruntime as ort

from ..runtime.bicubic import count_cpus
from ..runtime.errors import VlmedgeError
from ..runtime.manifest import read_manifest
from .check_levels import (
    check_finite,
    compare_forced,
    compare_texts,
    compare_visuals,
    score_tasks,
)
from .examples import DataSet, Example
from .findings import CheckResult, EmbeddingFinding, LogitFinding, TextFinding
from .observe import BundleSide
from .reference import Observation, Shelf, Side, is_bundle, open_checkpoint
from .speed import count_speed_steps, measure_speed

Level = Literal["embeddings", "logits", "texts", "tasks", "speed", "layers"]
LEVELS: tuple[Level, ...] = get_args(Level)
_OBSERVED = ("embeddings", "logits", "texts", "tasks")
_OF_BUNDLES = ("speed", "layers")  # what only two bundles can be compared in
# (steps done, of how many, what is done now)
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What to compare, and how long to look.

    Attributes:
        levels: of LEVELS; None: all that the two sides and the data allow.
        max_new_tokens: the longest answer.
        num_speed_runs: measurements of each figure, after one that warms up.
        num_threads: None: the cores this process may use.
    """

    levels: tuple[Level, ...] | None = None
    max_new_tokens: int = 32
    num_speed_runs: int = 5
    num_threads: int | None = None

    def __post_init__(self) -> None:
        if unknown := [level for level in self.levels or () if level not in LEVELS]:
            raise ValueError(f"level is {unknown[0]!r}, needed one of {', '.join(LEVELS)}")
        if self.levels is not None and not self.levels:
            raise ValueError(f"there are no levels to compare, needed some of {', '.join(LEVELS)}")
        for name in ("max_new_tokens", "num_speed_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needed at least 1")


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
    read_manifest(folder)  # what is wrong with the bundle is told before the reference is loaded
    levels = choose_levels(plan, data, with_bundle=is_bundle(against))
    examples = data.examples
    num_steps = 2 * len(examples) if set(levels) & set(_OBSERVED) else 0
    num_speed_steps = count_speed_steps(examples, plan.num_speed_runs) if "speed" in levels else 0
    progress = _Progress(on_progress, num_steps + num_speed_steps)
    found = _Findings([], [], [])
    reference = Path(against).absolute().name
    if num_steps:
        reference = _observe_both(folder, str(against), examples, levels, plan, found, progress)
    speed = ()
    if "speed" in levels:
        speed = measure_speed(
            folder,
            Path(against),
            examples,
            num_runs=plan.num_speed_runs,
            num_threads=plan.num_threads,
            on_step=progress.step,
        )
    return CheckResult(
        bundle=folder.absolute().name,
        reference=reference,
        data=data.name,
        data_sha256=data.sha256,
        num_examples=len(examples),
        skipped=dict(data.skipped),
        embeddings=tuple(found.embeddings),
        logits=tuple(found.logits),
        texts=tuple(found.texts) if "texts" in levels else (),
        tasks=score_tasks(examples, found.texts) if "tasks" in levels else (),
        speed=speed,
        environment=describe_environment(plan.num_threads),
    )


def choose_levels(plan: CheckPlan, data: DataSet, *, with_bundle: bool) -> tuple[Level, ...]:
    """The levels of a check.

    Raises:
        ValueError: one that was asked for can't be compared.
    """
    is_labelled = any(example.answers for example in data.examples)
    why_not = {level: "" for level in LEVELS}
    if not with_bundle:
        for level in _OF_BUNDLES:
            why_not[level] = "it needs a float bundle as the reference, not a checkpoint"
    if not is_labelled:
        why_not["tasks"] = f"no example of {data.name} has an answer to score with"
    if plan.levels is None:
        return tuple(level for level in LEVELS if not why_not[level])
    for level in plan.levels:
        if why_not[level]:
            raise ValueError(f"the level {level} can't be compared: {why_not[level]}")
    return tuple(level for level in LEVELS if level in plan.levels)


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


class _Progress:
    """Counts steps."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._tell, self._total, self._done = on_progress, total, 0

    def step(self, name: str) -> None:
        self._tell(self._done, self._total, name)
        self._done += 1


@dataclass(frozen=True, slots=True)
class _Findings:
    embeddings: list[EmbeddingFinding]
    logits: list[LogitFinding]
    texts: list[TextFinding]


def _observe_both(
    bundle: Path,
    against: str,
    examples: Sequence[Example],
    levels: Sequence[Level],
    plan: CheckPlan,
    found: _Findings,
    progress: _Progress,
) -> str:
    """Fill in the findings of the observed levels; the reference's name."""
    with_answers = set(levels) & {"logits", "texts", "tasks"}
    max_new_tokens = plan.max_new_tokens if with_answers else 0
    with Shelf() as shelf:
        reference: Side
        if is_bundle(against):
            reference = BundleSide(against, plan.num_threads)
        else:
            reference = open_checkpoint(against, bundle, plan.num_threads)
        try:
            for index, example in enumerate(examples):
                progress.step(f"{reference.name}: {example.id}")
                shelf.put(index, _observe(reference, example, max_new_tokens))
        finally:
            reference.close()
        side = BundleSide(bundle, plan.num_threads)
        try:
            for index, example in enumerate(examples):
                progress.step(f"{side.name}: {example.id}")
                needed = shelf.take(index)
                got = _observe(side, example, max_new_tokens, needed.token_ids)
                if "embeddings" in levels:
                    found.embeddings.extend(compare_visuals(example, got, needed))
                if "logits" in levels:
                    found.logits.append(compare_forced(example, got, needed))
                if with_answers:
                    found.texts.append(compare_texts(example, got, needed))
        finally:
            side.close()
    return reference.name


def _observe(
    side: Side, example: Example, max_new_tokens: int, forced: Sequence[int] = ()
) -> Observation:
    try:
        if isinstance(side, BundleSide):
            seen = side.observe(example, max_new_tokens, forced=forced)
        else:
            seen = side.observe(example, max_new_tokens)
    except (VlmedgeError, ValueError) as error:
        raise ValueError(f"{side.name}, example {example.id}: {error}") from error
    check_finite(seen, side.name, example.id)
    return seen
