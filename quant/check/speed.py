"""Time two bundles side by side on this machine, run by run, with their memory.

Machines get warm, and others use them too: both answer the same question one right after the other,
taking turns to be first, so that whatever slows one down slows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...runtime.answer import Answer
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.cli.memory_probe import ProbeRequest, probe
from ...runtime.inputs.request import RequestMaker
from ...runtime.model import Model
from ...runtime.options import GenerationOptions
from ..compare.findings import SpeedFinding
from ..data.examples import Example

MAX_PROBES = 3  # fresh processes a bundle, each of which loads all of it
NUM_NEW_TOKENS = 17  # the first is the prefill's
OPTIONS = GenerationOptions(max_new_tokens=NUM_NEW_TOKENS, ignore_eos=True, ignore_defaults=True)


def count_speed_steps(num_examples: int, num_runs: int) -> int:
    """How often `measure_speed` reports a step."""
    return num_examples * (num_runs + 1) + min(num_runs, MAX_PROBES)


def measure_speed(
    bundle: Path,
    reference: Path,
    examples: Sequence[Example],
    *,
    num_runs: int,
    num_threads: int | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> tuple[SpeedFinding, ...]:
    """Vision, prefill and decode times over examples, and peak memory of a fresh process.

    Each example is asked in every run: a handful is enough.

    Raises:
        BundleError: a bundle is missing or damaged.
        BackendError: there is no engine, or a measuring process failed.
        ContextLengthError: an example leaves no room for an answer of 17 tokens.
    """
    pairs = _run_side_by_side(bundle, reference, examples, num_runs, num_threads, on_step)
    findings = []
    for what, unit, measure in _FIGURES:
        got, needed = (
            tuple(sum(map(measure, answers)) / len(answers) for answers in runs) for runs in pairs
        )
        if min(*needed, *got) > 0:  # without pictures there is no vision to time
            findings.append(SpeedFinding(what, unit, reference_runs=needed, got_runs=got))
    got, needed = _measure_memory(bundle, reference, examples, num_runs, num_threads, on_step)
    findings.append(SpeedFinding("peak_memory", "MiB", reference_runs=needed, got_runs=got))
    return tuple(findings)


def _decode_ms(answer: Answer) -> float:
    return 1000 * answer.timings.decode_s / (NUM_NEW_TOKENS - 1)


# (what, unit, of one answer)
_FIGURES: tuple[tuple[str, str, Callable[[Answer], float]], ...] = (
    ("vision", "ms", lambda answer: 1000 * answer.timings.vision_s * bool(answer.num_image_tokens)),
    ("prefill", "ms", lambda answer: 1000 * answer.timings.prefill_s),
    ("decode", "ms a token", _decode_ms),
)


def _run_side_by_side(
    bundle: Path,
    reference: Path,
    examples: Sequence[Example],
    num_runs: int,
    num_threads: int | None,
    on_step: Callable[[str], None],
) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """Answers of the bundle and of the reference, run by run; the first run warms up."""
    with (
        Model.load(bundle, providers="cpu", num_threads=num_threads) as ours,
        Model.load(reference, providers="cpu", num_threads=num_threads) as theirs,
    ):
        runs: dict[Model, list[list[Answer]]] = {ours: [], theirs: []}
        for run in range(num_runs + 1):
            for answers in runs.values():
                answers.append([])
            for number, example in enumerate(examples):
                on_step(f"speed, run {run} of {num_runs}")
                turn = (ours, theirs) if (run + number) % 2 else (theirs, ours)
                for model in turn:
                    runs[model][run].append(model.chat(example.messages, OPTIONS))
    return runs[ours][1:], runs[theirs][1:]


def _measure_memory(
    bundle: Path,
    reference: Path,
    examples: Sequence[Example],
    num_runs: int,
    num_threads: int | None,
    on_step: Callable[[str], None],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Peaks in MiB of the bundle and of the reference, with a picture as large as the largest."""
    width, height = _find_largest(bundle, examples)
    peaks: tuple[list[int], list[int]] = ([], [])
    for _ in range(min(num_runs, MAX_PROBES)):
        on_step("peak memory in fresh processes")
        for path, values in zip((bundle, reference), peaks, strict=True):
            request = ProbeRequest(
                bundle=str(path.absolute()),
                residency="one",
                width=width,
                height=height,
                num_new_tokens=NUM_NEW_TOKENS,
                providers=("cpu",),
                num_threads=num_threads,
            )
            values.append(probe(request).peak_bytes)
    ours, theirs = (tuple(value / 2**20 for value in values) for values in peaks)
    return ours, theirs


def _find_largest(bundle: Path, examples: Sequence[Example]) -> tuple[int, int]:
    """Width and height of the largest picture after resizing; of the smallest there is if none."""
    manifest = read_manifest(bundle)
    maker = RequestMaker(bundle, manifest, None)
    grids = [v.grid for e in examples for v in maker.make(e.messages).visuals]
    side = manifest.vision.patch_size
    if not grids:
        token_px = side * manifest.vision.spatial_merge_size
        return token_px, token_px
    largest = max(grids, key=lambda grid: grid.h * grid.w)
    return largest.w * side, largest.h * side
