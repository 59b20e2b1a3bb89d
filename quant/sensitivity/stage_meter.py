"""Walk through both parts of a model stage by stage, and measure every layer that is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..quantize.bundle import TABLE
from ..quantize.model_quantizer import Progress
from .damage import ALL, Buckets, Damages, drop_embeds, share_out, subtract
from .mixer import Choice, Mixer
from .reference_outputs import Yardstick
from .rows import RowFolder, SensitivityRow
from .variants import FLOAT, Embeds, Lane, Trials

MAX_LANE_BYTES = 1 << 30  # of all variants that travel side by side
TOGETHER = ""  # the variant in which all layers of a stage are quantized
# (lane, index of the stage, own choices, choice behind it) -> damage by variant
Carry = Callable[[Lane, int, Mapping[str, Choice], Choice], dict[str, Damages]]


class StageMeter:
    """One run through a model."""

    def __init__(
        self,
        trials: Trials,
        mixer: Mixer,
        buckets: Buckets,
        choice: Choice,
        own_sqnr_db: Mapping[str, float],
        rows: RowFolder,
        progress: Progress | None,
    ) -> None:
        """Bring together what a run needs.

        Args:
            trials: the float bundle with prompts.
            mixer: with every layer of `choice`.
            buckets: of the bundle.
            choice: everything that is quantized.
            own_sqnr_db: of linear layers.
            rows: where finished stages are.
            progress: called before each stage.
        """
        self._trials, self._mixer, self._choice = trials, mixer, choice
        self._buckets, self._own, self._rows = buckets, own_sqnr_db, rows
        self._progress = progress
        self._total: Damages = {}
        self._done = 0

    def run(self, mode: str) -> tuple[Damages, list[SensitivityRow]]:
        """Damage of everything together, and the rows in the order the layers run.

        Args:
            mode: "exact" or "fast", see sensitivity.py.
        """
        self._tell("float model")
        self._yardstick = Yardstick(self._trials, self._buckets)
        is_exact = mode == "exact"
        self._measure = self._measure_exact if is_exact else self._measure_fast
        self._courses = (FLOAT, self._choice) if is_exact else (FLOAT,)
        self._tell("all quantized")
        trials, choice = self._trials, self._choice
        quantized = trials.finish_vision(trials.start_vision(), 0, choice)[""]
        self._total = self._yardstick.measure_whole({"": quantized}, choice)[""]
        found = list(self._run_vision())
        found += self._run_table(quantized)
        found += self._run_decoder(quantized)
        return self._total, found

    def _run_vision(self) -> Iterator[SensitivityRow]:
        trials = self._trials

        def carry(lane: Lane, index: int, own: Mapping[str, Choice], after: Choice):
            embeds = trials.carry_vision(lane, index, own, after)
            return self._yardstick.measure_whole(embeds, after)

        lanes = [trials.start_vision() for _ in self._courses]
        yield from self._run_part("vision", lanes, carry)

    def _run_decoder(self, quantized: Embeds) -> Iterator[SensitivityRow]:
        trials = self._trials
        embeds = self._yardstick.embeds, quantized
        lanes = [
            trials.start_decoder({"": rows}, choice)
            for rows, choice in zip(embeds, self._courses, strict=False)
        ]
        yield from self._run_part("decoder", lanes, self._yardstick.measure_decoder)

    def _run_part(self, part: str, lanes: Sequence[Lane], carry: Carry) -> Iterator[SensitivityRow]:
        """The float model, in exact mode the quantized one beside it; variants fork off both."""
        stages = self._trials.stages[part]
        members = [
            [n for n in self._mixer.list_members(part, stage) if n in self._choice]
            for stage in stages
        ]
        todo = [
            bool(names) and not self._rows.has(f"{part}.{stage}")
            for stage, names in zip(stages, members, strict=True)
        ]
        for index, stage in enumerate(stages):
            self._tell(f"{part}: {stage}")
            key = f"{part}.{stage}"
            if todo[index]:
                self._rows.save(key, self._measure(part, lanes, index, members[index], carry))
            if members[index]:
                yield from self._rows.load(key)
            if any(todo[index + 1 :]):
                for lane, choice in zip(lanes, self._courses, strict=True):
                    self._trials.run(part, lane, index, choice)

    def _measure_exact(
        self,
        part: str,
        lanes: Sequence[Lane],
        index: int,
        members: Sequence[str],
        carry: Carry,
    ) -> list[SensitivityRow]:
        rows = []
        room = MAX_LANE_BYTES // max(1, 2 * lanes[0].nbytes)
        for group in _chunks(members, max(1, room)):
            alone = carry(lanes[0], index, {n: {n: self._choice[n]} for n in group}, FLOAT)
            others = {name: _leave_out(self._choice, name) for name in group}
            rest = carry(lanes[1], index, others, self._choice)
            rows += [self._make_row(part, name, alone[name], rest[name]) for name in group]
        return rows

    def _measure_fast(
        self,
        part: str,
        lanes: Sequence[Lane],
        index: int,
        members: Sequence[str],
        carry: Carry,
    ) -> list[SensitivityRow]:
        if index == len(self._trials.stages[part]) - 1:  # nothing is behind it: as quick as exact
            own = {name: {name: self._choice[name]} for name in members}
            alone = carry(lanes[0], index, own, FLOAT)
        else:
            whole = carry(lanes[0], index, {TOGETHER: self._choice}, FLOAT)[TOGETHER]
            alone = share_out(whole, self._measure_outputs(part, lanes[0], index, members))
        total = self._total if part == "vision" else drop_embeds(self._total)
        return [
            self._make_row(part, name, alone[name], subtract(total, alone[name]))
            for name in members
        ]

    def _measure_outputs(
        self, part: str, lane: Lane, index: int, members: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """Layer -> picture size -> squares of the error in what the stage hands on.

        A block hands on the residual stream and its MLP's output, which the next norm adds up.
        """
        needed = lane.fork("")
        self._trials.run(part, needed, index, FLOAT)
        yardstick = self._yardstick
        errors: dict[str, dict[str, float]] = {}
        for name in members:
            got = lane.fork("")
            self._trials.run(part, got, index, {name: self._choice[name]})
            sums = errors.setdefault(name, {})
            for graph, walk in got.walks.items():
                outputs = walk.stages[index].outputs
                buckets = yardstick.prompt_buckets
                if part == "vision":
                    feeds = zip(self._trials.feeds, yardstick.feed_buckets, strict=True)
                    buckets = [bucket for feed, bucket in feeds if feed.graph == graph]
                pairs = zip(walk.live, needed.walks[graph].live, buckets, strict=True)
                for mine, theirs, bucket in pairs:
                    error = sum(mine[n] - theirs[n] for n in outputs if n in mine)
                    square = float(np.square(error, dtype=np.float64).sum())
                    for key in (bucket, ALL):
                        sums[key] = sums.get(key, 0.0) + square
        return errors

    def _run_table(self, quantized: Embeds) -> Iterator[SensitivityRow]:
        """The table's rows go into the decoder before its first stage."""
        if TABLE not in self._choice:
            return
        self._tell("decoder: table")
        if not self._rows.has(TABLE):
            yardstick, trials = self._yardstick, self._trials
            lane = trials.start_decoder({TABLE: yardstick.embeds}, self._choice)
            alone = yardstick.measure_decoder(lane, 0, {TABLE: FLOAT}, FLOAT)
            others = _leave_out(self._choice, TABLE)
            lane = trials.start_decoder({TABLE: quantized}, others)
            rest = yardstick.measure_decoder(lane, 0, {TABLE: others}, others)
            row = self._make_row("decoder", TABLE, alone[TABLE], rest[TABLE])
            self._rows.save(TABLE, [row])
        yield from self._rows.load(TABLE)

    def _make_row(self, part: str, name: str, alone: Damages, rest: Damages) -> SensitivityRow:
        return SensitivityRow(
            part=part,
            layer=name,
            format=self._choice[name],
            own_sqnr_db=self._own.get(name),
            alone=alone,
            rest=rest,
        )

    def _tell(self, name: str) -> None:
        if self._progress is not None:
            total = sum(len(stages) for stages in self._trials.stages.values()) + 2
            total += TABLE in self._choice
            self._progress(self._done, total, name)
        self._done += 1


def _leave_out(choice: Choice, name: str) -> Choice:
    return {other: format for other, format in choice.items() if other != name}


def _chunks(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
