"""Compare a bundle with transformers: settings, image embeddings, logits, greedy tokens.

Both sides get the same pictures and prompts and go their own whole way: resizing, cutting,
positions, cache. transformers runs in float32 and is freed before the bundle is loaded, so the peak
of memory is the larger of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...quant.compare.observe import BundleSide
from ...quant.compare.reference import Side
from ...quant.compare.settings import Settings, compare_settings
from ...quant.data.examples import Example
from ...quant.graph.joined_names import split_joined
from ...quant.graph.linears import list_carried
from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.manifest_file import read_manifest
from .reference import TransformersSide
from .report import VerifyReport, VerifyRow, print_report, report_to_dict
from .tolerance import Tolerance, choose_tolerance, measure_difference, split_precisions

__all__ = ["VerifyReport", "print_report", "report_to_dict", "verify_bundle"]

# (width, height): wide, square, tall; none a multiple of 28, so that every one is resized.
IMAGE_SIZES = ((400, 130), (230, 230), (90, 310))
NUM_TOKENS = 16
PROMPT = "Describe the picture."
TEXT_PROMPT = "Write a poem about the sea."
_NONE = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class _Case:
    """One request: pictures before a question."""

    name: str
    prompt: str
    images: tuple[Image.Image, ...]

    @property
    def messages(self) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "image", "image": i} for i in self.images]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.prompt}]}]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one side made of a case."""

    image_embeds: NDArray[np.float32]  # [visual tokens, hidden], all pictures in order
    logits: NDArray[np.float32]  # [steps, vocabulary]
    token_ids: tuple[int, ...]


def verify_bundle(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    image_sizes: Sequence[tuple[int, int]] = IMAGE_SIZES,
    num_tokens: int = NUM_TOKENS,
    float_tolerance: float | None = None,
    adapters: Sequence[Path] | None = None,
) -> VerifyReport:
    """Compare a bundle with the checkpoint it was made from.

    Args:
        checkpoint: a directory or hub id with the weights.
        bundle: the directory that `export` wrote from it.
        image_sizes: (width, height) of the pictures, one request each and one with all of them.
        num_tokens: greedy tokens of each answer; the logits of every step are compared.
        float_tolerance: instead of the tolerances by precision (tolerance.py), this largest
            difference over the reference's root mean square, for everything.
        adapters: LoRA adapters that were merged, as in `open_checkpoint`; peft merges them too.

    Raises:
        ValueError: no such checkpoint or bundle, adapters without peft installed, no picture
            sizes, or fewer than one token.
    """
    if not image_sizes or num_tokens < 1:
        raise ValueError(
            f"got {len(image_sizes)} picture sizes and {num_tokens} tokens, needed one of each"
        )
    folder = Path(bundle)
    manifest = read_manifest(folder)
    cases = _make_cases(image_sizes)
    reference = TransformersSide(checkpoint, folder, adapters=adapters)
    needed_settings = reference.settings
    needed = _observe(reference, cases, num_tokens)
    side = BundleSide(folder)
    rows = _compare_settings(side.settings, needed_settings)
    got = _observe(side, cases, num_tokens)
    for case, ours, theirs in zip(cases, got, needed, strict=True):
        limits = _choose_tolerances(manifest, case, float_tolerance)
        rows += _compare(case, ours, theirs, *limits)
    return VerifyReport(folder.name, tuple(rows))


def _make_cases(image_sizes: Sequence[tuple[int, int]]) -> list[_Case]:
    pictures = [_make_picture(width, height) for width, height in image_sizes]
    cases = [_Case(f"{picture.width}x{picture.height}", PROMPT, (picture,)) for picture in pictures]
    if len(pictures) > 1:
        cases.append(_Case(f"{len(pictures)} pictures", PROMPT, tuple(pictures)))
    return [*cases, _Case("text", TEXT_PROMPT, ())]


def _make_picture(width: int, height: int) -> Image.Image:
    """Smooth colour with noise over it: low and high frequencies, different in every patch."""
    rng = np.random.default_rng([width, height])
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / rng.uniform(5, 50) + columns / rng.uniform(5, 50)) for _ in range(3)]
    levels = 128 + 80 * np.stack(waves, axis=2) + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _choose_tolerances(
    manifest: Manifest, case: _Case, float_tolerance: float | None
) -> tuple[Tolerance, Tolerance]:
    """Of the image embeddings and of the logits, which the embeddings' error reaches too."""
    if float_tolerance is not None:
        tolerance = Tolerance("max abs", float_tolerance)
        return tolerance, tolerance
    # Of layers that were packed before the export only the inputs are rounded, to 8 bits
    carried = {tensor for layer in list_carried(manifest) for tensor in split_joined(layer)}
    precision = {
        name: kind.replace("int4", "int8") if name in carried else kind
        for name, kind in manifest.precision.items()
    }
    vision, decoder = split_precisions(precision)
    of_logits = choose_tolerance([*vision, *decoder] if case.images else decoder)
    return choose_tolerance(vision), of_logits


def _compare(
    case: _Case, ours: _Outcome, theirs: _Outcome, of_embeds: Tolerance, of_logits: Tolerance
) -> list[VerifyRow]:
    rows = []
    if case.images:
        difference = measure_difference(ours.image_embeds, theirs.image_embeds)
        detail = f"{len(theirs.image_embeds)} visual tokens"
        ok = difference.is_within(of_embeds)
        rows.append(VerifyRow("image embeddings", case.name, difference, of_embeds, detail, ok))
    num_tokens = len(theirs.token_ids)
    pairs = zip(ours.token_ids, theirs.token_ids, strict=True)
    num_equal = next((i for i, (a, b) in enumerate(pairs) if a != b), num_tokens)
    # Up to the first other token both sides have read the same; after it they tell other stories.
    num_steps = min(num_equal + 1, num_tokens)
    difference = measure_difference(ours.logits[:num_steps], theirs.logits[:num_steps])
    ok = difference.is_within(of_logits)
    detail = f"{num_steps} of {num_tokens} steps"
    rows.append(VerifyRow("logits", case.name, difference, of_logits, detail, ok))
    detail = f"{num_equal} of {num_tokens} equal"
    is_tie = False
    if num_equal < num_tokens:
        needed = theirs.logits[num_equal]
        gap = float(needed.max() - needed[ours.token_ids[num_equal]])
        # Two logits, each within the tolerance, can swap over at most twice of it.
        scale = max(1.0, float(np.sqrt(np.mean(needed**2))))
        is_tie = of_logits.measure == "max abs" and gap <= 2 * of_logits.limit * scale
        detail += f", then the reference prefers its own by {gap:.2g}"
    # Rounded weights may choose another word where two are about as likely: the logits decide.
    ok = num_equal == num_tokens or is_tie or of_logits.measure == "rel L2"
    rows.append(VerifyRow("greedy tokens", case.name, None, None, detail, ok))
    return rows


def _compare_settings(got: Settings, needed: Settings) -> list[VerifyRow]:
    """A row for each setting that differs; one row for all of them where none does."""
    findings = compare_settings(got, needed)
    if differing := [one for one in findings if not one.is_equal]:
        return [
            VerifyRow(
                "settings", one.name, None, None, f"{one.got}, transformers: {one.reference}", False
            )
            for one in differing
        ]
    return [VerifyRow("settings", "all", None, None, f"{len(findings)} equal", True)]


def _observe(side: Side, cases: Sequence[_Case], num_tokens: int) -> list[_Outcome]:
    """What one side makes of the cases; it is closed afterwards."""
    outcomes = []
    try:
        for case in cases:
            example = Example(case.name, tuple(case.messages))
            seen = side.observe(example, num_tokens, is_plain=True)
            outcomes.append(
                _Outcome(
                    image_embeds=np.concatenate([v.image_embeds for v in seen.visuals] or [_NONE]),
                    logits=seen.logits,
                    token_ids=seen.token_ids,
                )
            )
    finally:
        side.close()
    return outcomes
