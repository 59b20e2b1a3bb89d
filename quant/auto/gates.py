"""Test whether a choice of formats holds a gate: by walks through the graphs, or a real check.

Embeddings and logits don't need a bundle: walks give the same findings as a check, from the same
stages and along the reference's own answers. All else is judged by the check of a written bundle,
and so is every result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import Manifest
from ..check.levels import ARRAYS
from ..check.plan import LEVELS, CheckPlan
from ..check.run import run_check
from ..compare.findings import CheckResult, EmbeddingFinding, LogitFinding
from ..compare.measures import compare_arrays, compare_logits
from ..compare.observe import BundleSide, find_merger_inputs
from ..data.buckets import name_bucket
from ..data.examples import DataSet
from ..gate.gate import Gate
from ..gate.verdict import Verdict, judge
from ..graph.feeds import Prompt, make_prompts
from ..graph.stages import Tensors
from ..sensitivity.mixer import Choice, Mixer
from ..sensitivity.variants import FLOAT, Trials

LOGITS = "logits"
QUICK = (*ARRAYS, LOGITS)  # tables of a gate that walks can judge
# Table of a gate -> a value a picture or prompt
Seen = dict[str, list[NDArray[np.float32]]]


def split_gate(gate: Gate) -> Gate | None:
    """The limits that can be judged quickly; None if there are none."""
    limits = tuple(limit for limit in gate.limits if limit.level in QUICK)
    return Gate(gate.name, limits) if limits else None


def plan_check(gate: Gate, num_threads: int) -> CheckPlan:
    """What a check has to measure for a gate."""
    tables = {"embeddings" if table in ARRAYS else table for table in gate.levels}
    tables = {"texts" if table == "text" else table for table in tables}
    return CheckPlan(
        levels=tuple(level for level in LEVELS if level in tables), num_threads=num_threads or None
    )


def check_bundle(
    bundle: Path, source: Path, data: DataSet, gate: Gate, num_threads: int
) -> Verdict:
    """The real thing."""
    result = run_check(bundle, source, data, plan_check(gate, num_threads))
    return judge(result, gate)


class QuickGate:
    """A gate of QUICK tables, the float model's own values kept."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        mixer: Mixer,
        data: DataSet,
        gate: Gate,
        *,
        keep_qdq: bool,
        num_threads: int,
    ) -> None:
        """Run the float model.

        Args:
            folder: of the float bundle.
            manifest: its manifest.
            mixer: with every layer in every format that will be tried.
            data: what the gate is judged on.
            gate: of `split_gate`.
            keep_qdq: there may be FP8.
            num_threads: of one operator; 0: all cores.
        """
        self._gate, self._data, self._manifest = gate, data, manifest
        self._tables = gate.levels
        prompts = make_prompts(folder, manifest, data.examples)
        if LOGITS in self._tables:
            prompts = _answer(folder, data, prompts, num_threads)
        self._trials = Trials(
            folder, manifest, mixer, prompts, keep_qdq=keep_qdq, num_threads=num_threads
        )
        self._merger_inputs = find_merger_inputs(mixer.models["vision"].graph)
        self._needed = self._run(FLOAT)

    def judge(self, choice: Choice) -> Verdict:
        """Run a choice and hold it against the gate."""
        seen, data = self._run(choice), self._data
        result = CheckResult(
            bundle="",
            reference="",
            data=data.name,
            data_sha256=data.sha256,
            num_examples=len(data.examples),
            skipped={},
            embeddings=tuple(self._compare_pictures(seen)),
            logits=tuple(self._compare_logits(seen)),
        )
        return judge(result, self._gate)

    def _run(self, choice: Choice) -> Seen:
        trials = self._trials
        before: dict[int, NDArray[np.float32]] = {}
        taps = self._merger_inputs if "before_merger" in self._tables else ()

        def on_taps(_: str, feed: int, values: Tensors) -> None:
            before[feed] = sum(values[name] for name in taps)  # type: ignore[assignment]

        lane = trials.start_vision()
        embeds = trials.finish_vision(lane, 0, choice, taps, on_taps if taps else None)
        seen: Seen = {"image_embeds": embeds[""]}
        seen["before_merger"] = [before[feed] for feed in sorted(before)]
        if LOGITS in self._tables:
            logits: dict[int, NDArray[np.float32]] = {}
            lane = trials.start_decoder(embeds, choice)
            trials.finish_decoder(
                lane, 0, choice, lambda _, prompt, rows: logits.update({prompt: rows})
            )
            seen[LOGITS] = [logits[prompt] for prompt in sorted(logits)]
        return seen

    def _compare_pictures(self, seen: Mapping[str, list[NDArray[np.float32]]]):
        prompts = self._trials.prompts
        visuals = [visual for prompt in prompts for visual in prompt.request.visuals]
        for index, (feed, visual) in enumerate(zip(self._trials.feeds, visuals, strict=True)):
            for table in ARRAYS:
                if table not in self._tables:
                    continue
                got = needed = feed.tensors["pixel_values"]  # both sides have the same
                if table != "pixel_values":
                    got, needed = seen[table][index], self._needed[table][index]
                distance = compare_arrays(got, needed)
                yield EmbeddingFinding(
                    level=table,
                    example=prompts[feed.prompt].example,
                    bucket=name_bucket(visual, self._manifest.vision),
                    **dataclasses.asdict(distance),
                )

    def _compare_logits(self, seen: Mapping[str, list[NDArray[np.float32]]]):
        for index, rows in enumerate(seen.get(LOGITS, [])):
            distance = compare_logits(rows, self._needed[LOGITS][index])
            yield LogitFinding(
                example=self._trials.prompts[index].example,
                kl=tuple(distance.kl.tolist()),
                top1=tuple(distance.top1.tolist()),
                top5=tuple(distance.top5.tolist()),
                first_divergence=distance.first_divergence,
            )


def _answer(folder: Path, data: DataSet, prompts: list[Prompt], num_threads: int) -> list[Prompt]:
    """Prompts with the float model's own answers, along which a check compares logits."""
    side = BundleSide(folder, num_threads or None)
    answered = []
    try:
        for example, prompt in zip(data.examples, prompts, strict=True):
            seen = side.observe(example, CheckPlan().max_new_tokens)
            ids = np.array(seen.token_ids, np.int64)
            answered.append(dataclasses.replace(prompt, answer_ids=ids))
    finally:
        side.close()
    return answered
