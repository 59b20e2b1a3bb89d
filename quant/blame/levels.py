"""Find the layers that are to blame, for each half of the model that fails a check.

Pictures and answers may fail for different reasons, so each has trials of its own: pictures on the
failed metric of the embeddings, answers on that of the logits. A text or a task that fails is
looked into by the KL of the logits along the reference's answer: where the best tokens agree all
along it, so do the texts. Trials run on the examples that are worst, and both sides are given the
bundle's own inputs: what holds there is no fault of layers but of settings that differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..compare.findings import CheckResult, EmbeddingFinding, LogitFinding
from ..compare.gauges import find_gauges
from ..compare.layer_walk import LayeredBundle
from ..compare.measures import compare_arrays, compare_logits
from ..compare.observe import BundleSide
from ..data.buckets import name_bucket
from ..data.examples import Example
from ..files.grammar import counted
from ..gate.blame import Blame, find_cause
from ..gate.metrics import METRICS
from ..gate.verdict import PICTURES, Row, Verdict
from ..graph.feeds import Prompt, make_prompts
from .walk import BlameWalk, Seen

MAX_EXAMPLES = 4
ANSWERS = ("logits", "text", "tasks")
OWN_ANSWERS = ("text", "tasks")  # each side's, by its own settings
STAND_IN = "kl_mean"  # what texts and tasks are looked into by
OnStep = Callable[[str], None]


def measure_blame(
    bundle: Path,
    against: Path,
    examples: Sequence[Example],
    result: CheckResult,
    verdict: Verdict,
    *,
    max_new_tokens: int,
    num_threads: int | None,
    on_step: OnStep = lambda step: None,
) -> Verdict:
    """Add to a verdict who is to blame; as it is where nothing failed that a layer can cause.

    Args:
        bundle: the folder that was judged.
        against: the reference, a bundle as well.
        examples: of the check.
        result: what the check found; layers were compared.
        verdict: its verdict.
        max_new_tokens: the longest answer.
        num_threads: None: all cores.
        on_step: told what is being done.

    Raises:
        BundleError: a damaged bundle.
    """
    halves = [
        rows
        for levels in (PICTURES, ANSWERS)
        if (rows := [row for row in verdict.failed if row.level in levels])
    ]
    if not halves or not result.layers:
        return verdict
    ours, reference = LayeredBundle(bundle, num_threads), LayeredBundle(against, num_threads)
    gauges = find_gauges(ours.layers, ours.find_folds(), ours, reference)
    blames = []
    for rows in halves:
        row = min(rows, key=lambda row: row.level in OWN_ANSWERS)  # the first measured as is
        if row.level in OWN_ANSWERS and any(one.level == "settings" for one in verdict.failed):
            blames.append(_excuse(row, f"not looked for in layers: {name_differing(result)}", 0))
            continue
        is_pictures = row.level in PICTURES
        chosen = choose_worst(examples, result, row)
        prompts = make_prompts(ours.folder, ours.manifest, chosen)
        if not is_pictures:
            prompts = _answer(against, chosen, prompts, max_new_tokens, num_threads)
        count = _Counter(on_step, f"blame for {row.key}")
        walk = BlameWalk(
            ours,
            reference,
            gauges,
            prompts,
            with_decoder=not is_pictures,
            on_step=count.step,
        )
        blames.append(_find(row, walk, prompts, ours, result, verdict, count))
    guilty = {layer for blame in blames for layer in blame.layers}
    guilty |= {finding.layer for finding in verdict.guilty}
    worst = {}
    for finding in sorted(result.layers, key=lambda finding: finding.own_sqnr_db):
        if finding.layer in guilty:
            worst.setdefault(finding.layer, finding)
    return dataclasses.replace(verdict, blames=tuple(blames), guilty=tuple(worst.values()))


def choose_worst(examples: Sequence[Example], result: CheckResult, row: Row) -> list[Example]:
    """At most MAX_EXAMPLES, those with most damage of the row's kind first."""
    harm: dict[str, float] = {}
    if row.level in PICTURES:
        for finding in result.embeddings:
            if finding.level == row.level and row.where in ("", finding.bucket):
                harm[finding.example] = max(harm.get(finding.example, 0.0), finding.rel_l2)
    else:
        harm = {f.example: float(np.mean(f.kl)) for f in result.logits if f.kl}
        for text in result.texts:
            if text.edit_distance:  # it counts before any KL
                harm[text.example] = 1e6 + harm.get(text.example, 0.0)
    ranked = sorted(examples, key=lambda example: -harm.get(example.id, 0.0))
    return ranked[:MAX_EXAMPLES]


def _find(
    row: Row,
    walk: BlameWalk,
    prompts: Sequence[Prompt],
    ours: LayeredBundle,
    result: CheckResult,
    verdict: Verdict,
    count: _Counter,
) -> Blame:
    is_pictures = row.level in PICTURES
    count.begin("the reference")
    needed = walk.run_reference()
    level, metric = row.level, row.metric
    if level in OWN_ANSWERS:
        level, metric = "logits", STAND_IN

    def measure(given_back: frozenset[str]) -> tuple[float, float]:
        count.begin(f"{counted(len(given_back), 'layer')} given back" if given_back else "as it is")
        seen = walk.run(given_back)
        if is_pictures:
            found = _compare_pictures(level, prompts, ours, seen, needed)
            here = [f for f in found if row.where in ("", f.bucket)] or found
            damage = float(np.mean([f.rel_l2**2 for f in here]))
            return METRICS[level][metric].measure(here).value, damage
        logits = _compare_answers(prompts, seen, needed)
        damage = float(np.mean(np.concatenate([f.kl for f in logits])))
        return METRICS[level][metric].measure(logits).value, damage

    layers = result.layers
    if is_pictures:
        layers = tuple(f for f in layers if f.layer.startswith("visual."))
    if level == "before_merger":
        layers = tuple(f for f in layers if ".merger." not in f.layer)
    unusual = [f for f in verdict.unusual if any(f.layer == one.layer for one in layers)]
    if any(not setting.is_equal for setting in result.settings):
        count.begin("as it is")
        seen = walk.run(())
        if is_pictures:
            found = _compare_pictures(level, prompts, ours, seen, needed)
            here = [f for f in found if row.where in ("", f.bucket)] or found
            does_hold = row.holds(METRICS[level][metric].measure(here).value)
        else:
            logits = _compare_answers(prompts, seen, needed)
            is_equal = all(all(finding.top1) for finding in logits)
            value = METRICS[level][metric].measure(logits).value
            does_hold = is_equal if row.level in OWN_ANSWERS else row.holds(value)
        if does_hold:
            reason = f"no fault of layers, on equal inputs it holds: {name_differing(result)}"
            return _excuse(row, reason, len(prompts))
    name = f"{level}.{metric}"
    return find_cause(row.key, name, layers, unusual, measure, len(prompts))


def _compare_pictures(
    level: str, prompts: Sequence[Prompt], ours: LayeredBundle, seen: Seen, needed: Seen
) -> list[EmbeddingFinding]:
    visuals = [(p.example, v) for p in prompts for v in p.request.visuals]
    pairs = zip(visuals, getattr(seen, level), getattr(needed, level), strict=True)
    return [
        EmbeddingFinding(
            level=level,
            example=example,
            bucket=name_bucket(visual, ours.manifest.vision),
            **dataclasses.asdict(compare_arrays(got, wanted)),
        )
        for (example, visual), got, wanted in pairs
    ]


def name_differing(result: CheckResult) -> str:
    """`settings differ (tokens.eos)`."""
    names = [setting.name for setting in result.settings if not setting.is_equal]
    return f"settings differ ({', '.join(names)})"


def _excuse(row: Row, reason: str, num_examples: int) -> Blame:
    nothing = math.nan
    name = f"{row.level}.{row.metric}"
    return Blame(row.key, name, "", (), nothing, nothing, nothing, 0.0, num_examples, (), reason)


def _compare_answers(prompts: Sequence[Prompt], seen: Seen, needed: Seen) -> list[LogitFinding]:
    found = []
    for prompt, got, wanted in zip(prompts, seen.logits, needed.logits, strict=True):
        distance = compare_logits(got, wanted)
        found.append(
            LogitFinding(
                prompt.example,
                kl=tuple(distance.kl.tolist()),
                top1=tuple(distance.top1.tolist()),
                top5=tuple(distance.top5.tolist()),
                first_divergence=distance.first_divergence,
            )
        )
    return found


def _answer(
    folder: Path,
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    num_threads: int | None,
) -> list[Prompt]:
    """Prompts with the reference's own answers, along which the check compared logits."""
    side = BundleSide(folder, num_threads)
    try:
        answers = [side.observe(example, max_new_tokens).token_ids for example in examples]
    finally:
        side.close()
    return [
        dataclasses.replace(prompt, answer_ids=np.array(ids, np.int64))
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


class _Counter:
    """Says which trial and which stage is running."""

    def __init__(self, on_step: OnStep, title: str) -> None:
        self._on_step, self._title, self._now = on_step, title, ""

    def begin(self, what: str) -> None:
        self._now = what

    def step(self, stage: str) -> None:
        self._on_step(f"{self._title}, {self._now}: {stage}")
