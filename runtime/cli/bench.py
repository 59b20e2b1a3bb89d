"""Measure a bundle on this machine: load time, vision, prefill and decode speed, peak memory.

Everything goes through the public `Model`, as an app would use it. A first request of each kind
warms up and is not counted. Load time and peak memory come from fresh processes
(memory_probe.py): in one that has done other work they would be those of the other work.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..answer import Answer
from ..bundle.manifest import Manifest
from ..bundle.manifest_file import read_manifest
from ..inputs.resize import make_limits, smart_resize
from ..model import Model
from ..options import GenerationOptions
from .memory_probe import QUESTION, ProbeRequest, ProbeResult, make_picture, probe

MAX_PROBES = 3  # each loads the whole bundle in a process of its own


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure and how often."""

    image_sizes: tuple[tuple[int, int], ...]  # (width, height)
    contexts: tuple[int, ...]  # tokens in the cache when decoding starts
    num_new_tokens: int
    num_runs: int
    providers: tuple[str, ...] | None = None
    num_threads: int | None = None

    @property
    def num_probes(self) -> int:
        """Fresh processes per residency."""
        return min(self.num_runs, MAX_PROBES)

    @property
    def num_steps(self) -> int:
        """How often `measure` reports a step."""
        requests = (len(self.image_sizes) + len(self.contexts)) * (self.num_runs + 1)
        return requests + 2 * self.num_probes


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of some measurements of one thing."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class VisionFigure:
    """One picture: read and cut on the host, then encoded by the ViT."""

    width: int
    height: int
    seen_width: int  # as the ViT sees it: rounded, and shrunk or enlarged to the pixel budget
    seen_height: int
    num_tokens: int
    preprocess_ms: Spread
    vision_ms: Spread


@dataclass(frozen=True, slots=True)
class ContextFigure:
    """A text prompt and the tokens decoded after it."""

    num_prompt_tokens: int
    num_new_tokens: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread


@dataclass(frozen=True, slots=True)
class MemoryFigure:
    """A fresh process: load, encode the largest picture, answer a question about it."""

    residency: str
    width: int
    height: int
    load_s: Spread
    peak_bytes: Spread  # resident, mapped files that were read included


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All figures of one bundle on one machine."""

    bundle: str
    machine: str
    num_cpus: int
    num_threads: int | None  # None: the engine's own choice
    providers: tuple[str, ...]
    onnxruntime: str
    num_runs: int
    vision: tuple[VisionFigure, ...]
    contexts: tuple[ContextFigure, ...]
    memory: tuple[MemoryFigure, ...]
    notices: tuple[str, ...]  # what was not measured as it was asked for


def measure(bundle: Path, plan: BenchPlan, on_step: Callable[[str], None]) -> BenchResult:
    """Run the plan; `on_step` is told what is measured next.

    Raises:
        BundleError: the bundle is missing or damaged.
        BackendError: there is no engine, or a measuring process failed.
    """
    read_manifest(bundle)  # what is wrong with the bundle is told before a process is started
    memory = tuple(
        _measure_memory(bundle, plan, residency, on_step) for residency in ("all", "one")
    )
    with Model.load(bundle, providers=plan.providers, num_threads=plan.num_threads) as model:
        vision = tuple(_measure_vision(model, size, plan, on_step) for size in plan.image_sizes)
        room = model.manifest.decoder.max_position_embeddings - plan.num_new_tokens
        lengths = dict.fromkeys(min(length, room) for length in plan.contexts)
        contexts = tuple(_measure_context(model, length, plan, on_step) for length in lengths)
        providers = tuple(model.providers)
        notices = _list_notices(model.manifest, plan, room)
    return BenchResult(
        bundle=bundle.name,
        machine=_read_cpu_name(),
        num_cpus=os.cpu_count() or 1,
        num_threads=plan.num_threads,
        providers=providers,
        onnxruntime=_find_onnxruntime_version(),
        num_runs=plan.num_runs,
        vision=vision,
        contexts=contexts,
        memory=memory,
        notices=notices,
    )


def find_seen_size(manifest: Manifest, width: int, height: int) -> tuple[int, int]:
    """(width, height) in which the ViT sees a picture."""
    (smallest, largest), _ = make_limits(manifest.pixels, None, None)
    factor = manifest.vision.patch_size * manifest.vision.spatial_merge_size
    rows, columns = smart_resize(height, width, factor, smallest, largest)
    return columns, rows


def _list_notices(manifest: Manifest, plan: BenchPlan, room: int) -> tuple[str, ...]:
    """Sizes and lengths that the bundle does not take as they are."""
    low, high = manifest.pixels.min_pixels, manifest.pixels.max_pixels
    notices = []
    for width, height in plan.image_sizes:
        seen = "x".join(map(str, find_seen_size(manifest, width, height)))
        if width * height > high:
            notices.append(f"{width}x{height} was shrunk to {seen}: the budget is {high} pixels")
        elif width * height < low:
            notices.append(f"{width}x{height} was enlarged to {seen}: the least is {low} pixels")
    notices += [
        f"context {length} was measured at {room} tokens: the model holds "
        f"{room + plan.num_new_tokens}, and {plan.num_new_tokens} are decoded"
        for length in plan.contexts
        if length > room
    ]
    return tuple(notices)


def _measure_vision(
    model: Model, size: tuple[int, int], plan: BenchPlan, on_step: Callable[[str], None]
) -> VisionFigure:
    picture = make_picture(*size)
    options = GenerationOptions(max_new_tokens=1, ignore_defaults=True)
    answers = []
    for _ in range(plan.num_runs + 1):
        on_step(f"picture {size[0]}x{size[1]}")
        answers.append(model.answer(QUESTION, [picture], options=options))
    counted = [answer.timings for answer in answers[1:]]
    seen_width, seen_height = find_seen_size(model.manifest, *size)
    return VisionFigure(
        width=size[0],
        height=size[1],
        seen_width=seen_width,
        seen_height=seen_height,
        num_tokens=answers[0].num_image_tokens,
        preprocess_ms=_spread([1000 * timings.preprocess_s for timings in counted]),
        vision_ms=_spread([1000 * timings.vision_s for timings in counted]),
    )


def _measure_context(
    model: Model, length: int, plan: BenchPlan, on_step: Callable[[str], None]
) -> ContextFigure:
    options = GenerationOptions(
        max_new_tokens=plan.num_new_tokens, ignore_eos=True, ignore_defaults=True
    )
    on_step(f"{length} tokens")
    prompt, _ = _find_prompt(model, length)
    answers: list[Answer] = []
    for _ in range(plan.num_runs):
        on_step(f"{length} tokens")
        answers.append(model.answer(prompt, options=options))
    num_prompt_tokens = answers[0].num_prompt_tokens
    return ContextFigure(
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=plan.num_new_tokens,
        prefill_tokens_per_s=_spread(
            [num_prompt_tokens / max(a.timings.prefill_s, 1e-9) for a in answers]
        ),
        decode_tokens_per_s=_spread([a.timings.decode_tokens_per_s for a in answers]),
    )


def _find_prompt(model: Model, length: int) -> tuple[str, int]:
    """A text of about `length` tokens, template included, never more; and its true count.

    Digits are a token each in Qwen's vocabulary; where they are not, the text is scaled once.
    """
    options = GenerationOptions(max_new_tokens=1, ignore_defaults=True)
    overhead = model.answer("1", options=options).num_prompt_tokens - 1
    num_digits = max(1, length - overhead)
    text = _make_digits(num_digits)
    count = model.answer(text, options=options).num_prompt_tokens
    if count < 0.95 * length:
        num_digits = int(num_digits * (length - overhead) / max(1, count - overhead))
        text = _make_digits(num_digits)
        count = model.answer(text, options=options).num_prompt_tokens
    return text, count


def _make_digits(count: int) -> str:
    return "".join(str(7 * i % 10) for i in range(count))


def _measure_memory(
    bundle: Path, plan: BenchPlan, residency: str, on_step: Callable[[str], None]
) -> MemoryFigure:
    width, height = max(plan.image_sizes, key=lambda size: size[0] * size[1])
    request = ProbeRequest(
        bundle=str(bundle.absolute()),
        residency=residency,
        width=width,
        height=height,
        num_new_tokens=plan.num_new_tokens,
        providers=plan.providers,
        num_threads=plan.num_threads,
    )
    results: list[ProbeResult] = []
    for _ in range(plan.num_probes):
        on_step(f"fresh process, residency {residency}")
        results.append(probe(request))
    return MemoryFigure(
        residency=residency,
        width=width,
        height=height,
        load_s=_spread([result.load_s for result in results]),
        peak_bytes=_spread([result.peak_bytes for result in results]),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _read_cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _find_onnxruntime_version() -> str:
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"
