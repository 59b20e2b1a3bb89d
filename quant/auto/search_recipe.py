"""Search for the recipe that passes a gate with few layers at a higher precision.

    1  quantize every layer once in each format it may have, check the recipe as it is
    2  rank what can be given back: the share of the damage that goes, over what it costs
    3  search: grow until the gate holds, then take back all that is not needed
    4  check the real bundle; if it fails where walks have passed, go on with real checks

Embeddings and logits are tried without writing bundles, a second each on a small model. Nothing is
called a success that a real check of a real bundle has not passed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime import __version__
from ...runtime.bundle.manifest_file import read_manifest
from ..check.plan import check_decidable, choose_levels
from ..compare.measures import sqnr_from_norms
from ..data.examples import DataSet
from ..files.grammar import counted
from ..files.verified import verify_bundle
from ..gate.gate import Gate
from ..gate.verdict import Verdict
from ..graph.feeds import Prompt, make_prompts
from ..quantize.calibration import hash_model
from ..quantize.plan import make_plan
from ..quantize.quantize import plan_bundle, quantize_bundle
from ..recipe.recipe import Recipe, scales_channels
from ..recipe.toml import format_recipe
from ..sensitivity.damage import Buckets
from ..sensitivity.measure import FAST_PROMPTS, needs_plain_qdq, pick_prompts
from ..sensitivity.mixer import Choice
from ..sensitivity.rows import RowFolder, SensitivityRow
from ..sensitivity.stage_meter import StageMeter
from ..sensitivity.variants import Trials
from .bundle import write_assembled
from .cost import Cost, Costs
from .gates import QuickGate, check_bundle, plan_check, split_gate
from .ladders import Ladders, share_harm
from .moves import GROUPS, Move, apply_moves, list_returned, make_recipe, order_moves
from .search_moves import search_moves

MAX_QUICK_TRIES = 100
MAX_CHECKS = 24  # of real bundles
HELPLESS = {"settings", "speed", "pixel_values"}  # tables of a gate that no precision makes hold
MAX_REASONS = 2  # limits that an exception's reason names
Log = Callable[[str], None]
# (layer or part of the recipe, format before, format after, reason)
Returned = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class AutoResult:
    """What was found.

    Attributes:
        recipe: with an exception for every layer that was given back.
        returned: the same as a list, in the order the layers run.
        passed: whether a real check of its bundle passed.
        checks: how often the gate was asked.
        bundles: how many of these were real checks.
        verdict: of the last real check.
    """

    recipe: Recipe
    returned: tuple[Returned, ...]
    passed: bool
    checks: int
    bundles: int
    verdict: Verdict


def search_recipe(
    source: Path,
    recipe: Recipe,
    data: DataSet,
    gate: Gate,
    *,
    cost: Cost = "bits",
    gate_data: DataSet | None = None,
    num_threads: int = 0,
    work: Path,
    progress: Log | None = None,
) -> AutoResult:
    """Search.

    Args:
        source: a float bundle.
        recipe: to start from.
        data: pictures and prompts to calibrate with.
        gate: that has to hold against the float bundle.
        cost: what is kept small: "bits", or "ms" as measured on this machine.
        gate_data: what the gate is judged on; None: `data`.
        num_threads: of one operator; 0: all cores.
        work: a folder for finished layers, removed at the end; an interrupted search goes on there.
        progress: told a line for each step.

    Raises:
        ValueError: the recipe doesn't fit the model, or the gate can't be judged with this data.
        BundleError: the bundle is quantized already, or damaged.
        OSError: no space; finished layers are kept for the next run.
    """
    judged = gate_data or data
    choose_levels(plan_check(gate, num_threads), judged, with_bundle=True)  # told before the work
    check_decidable(gate, judged)
    work.mkdir(parents=True, exist_ok=True)
    log = progress or (lambda _: None)
    search = _Search(Path(source), recipe, data, judged, gate, num_threads, work, log)
    result = search.run(cost)
    search.verified.check_unchanged()  # layers of two models would have been weighed together
    shutil.rmtree(work, ignore_errors=True)
    return result


class _Search:
    """One search on its way."""

    def __init__(
        self,
        source: Path,
        recipe: Recipe,
        data: DataSet,
        gate_data: DataSet,
        gate: Gate,
        num_threads: int,
        work: Path,
        log: Log,
    ) -> None:
        self._source, self._gate = source, gate
        self._data, self._gate_data = data, gate_data
        self._num_threads, self._work, self._log = num_threads, work, log
        self._manifest = read_manifest(source)
        self._recipe = plan_bundle(source, self._manifest, recipe).recipe  # as it fits the model
        self.verified = verify_bundle(source, self._manifest)
        self._num_quick = self._num_bundles = 0
        self._verdicts: dict[tuple[Move, ...], Verdict] = {}
        self._reasons: dict[str, str] = {}

    def run(self, cost: Cost) -> AutoResult:
        """See the module."""
        self._log("auto: quantizing every layer")
        self._ladders = Ladders(
            self._source, self._manifest, self._recipe, self._data, self._work, self._num_threads
        )
        self._choice = self._ladders.levels[0]
        verdict = self._check(())
        if verdict.passed or {row.level for row in verdict.unmet} <= HELPLESS:
            return self._finish(())
        moves = self._rank(verdict, cost)
        kept = self._search_quickly(moves)
        if kept is None:  # even all of them don't do
            return self._finish(moves)
        if kept and self._check(kept).passed:
            return self._finish(kept)
        rest = [move for move in moves if move not in kept]

        def holds(more: Sequence[Move]) -> bool:
            return self._check(_in_order(moves, (*kept, *more))).passed

        found = search_moves(rest, holds, MAX_CHECKS - self._num_bundles)
        return self._finish(_in_order(moves, (*kept, *found.moves)))

    def _search_quickly(self, moves: Sequence[Move]) -> tuple[Move, ...] | None:
        """Moves with which walks pass the limits they can judge; none if they pass without any."""
        limits = split_gate(self._gate)
        if limits is None:
            return ()
        quick = QuickGate(
            self._source,
            self._manifest,
            self._ladders.mixer,
            self._gate_data,
            limits,
            keep_qdq=needs_plain_qdq(self._choice),
            num_threads=self._num_threads,
        )

        def holds(some: Sequence[Move]) -> bool:
            self._num_quick += 1
            verdict = quick.judge(apply_moves(self._choice, some))
            self._tell(f"try {self._num_quick}", some, verdict)
            return verdict.passed

        if holds(()):
            return ()
        found = search_moves(moves, holds, MAX_QUICK_TRIES)
        return found.moves if found.holds else None

    def _check(self, moves: Sequence[Move]) -> Verdict:
        """The real bundle and the real check; asked again, what it said."""
        moves = tuple(moves)
        if moves in self._verdicts:
            return self._verdicts[moves]
        recipe, bundle = self._make_recipe(moves), self._work / "candidate"
        plan = make_plan(recipe, self._ladders.linears)
        if any(scales_channels(layer.recipe.method) for layer in plan.layers.values()):
            # its divisors are no powers of two: rounded anew, codes may differ in the last bit
            quantize_bundle(self._source, bundle, recipe, self._data, num_threads=self._num_threads)
        else:
            mixer = self._ladders.mixer
            write_assembled(self._source, self._manifest, mixer, plan, self._data, bundle)
        verdict = check_bundle(bundle, self._source, self._gate_data, self._gate, self._num_threads)
        self._verdicts[moves] = verdict
        self._num_bundles += 1
        self._tell(f"check {self._num_bundles}", moves, verdict)
        return verdict

    def _rank(self, verdict: Verdict, cost: Cost) -> list[Move]:
        """Everything that may be given back, the most worthwhile first."""
        ladders = self._ladders
        self._log("auto: quantizing every layer in higher formats")
        ladders.climb()
        prompts = make_prompts(self._source, self._manifest, self._gate_data.examples)
        levels = [self._measure(level, prompts) for level in ladders.levels]
        self._explain(levels[0], verdict)
        harms = share_harm(levels, {row.level for row in verdict.unmet})
        costs = Costs(self._source, self._manifest, ladders.mixer, prompts, cost, self._num_threads)
        return order_moves(ladders.list_moves(harms, costs))

    def _measure(self, level: Choice, prompts: Sequence[Prompt]) -> list[SensitivityRow]:
        """The damage of every layer alone, in some formats."""
        self._log(f"auto: measuring {counted(len(level), 'layer')}")
        mixer, buckets = self._ladders.mixer, Buckets(self._manifest)
        trials = Trials(
            self._source,
            self._manifest,
            mixer,
            pick_prompts(prompts, buckets, FAST_PROMPTS),
            keep_qdq=needs_plain_qdq(level),
            num_threads=self._num_threads,
        )
        errors = {n: mixer.find(n, f).error for n, f in level.items() if n in mixer.linears}
        own = {n: sqnr_from_norms(1.0, error) for n, error in errors.items() if error is not None}
        key = (format_recipe(self._recipe), hash_model(self._manifest), __version__, repr(level))
        folder = RowFolder(self._work / "rows", *key, self._data.sha256, self._gate_data.sha256)
        meter = StageMeter(trials, mixer, buckets, level, own, folder, None)
        return meter.run("fast")[1]

    def _explain(self, rows: Sequence[SensitivityRow], verdict: Verdict) -> None:
        """What exceptions will say of themselves."""
        keys = [row.key for row in verdict.unmet]
        more = f" and {len(keys) - MAX_REASONS} more" if len(keys) > MAX_REASONS else ""
        limits = f"gate {', '.join(keys[:MAX_REASONS])}{more}"
        self._reasons = dict.fromkeys(GROUPS, f"auto: {limits}")
        for row in rows:
            own = "" if row.own_sqnr_db is None else f"own SQNR {row.own_sqnr_db:.1f} dB, "
            self._reasons[row.layer] = f"auto: {own}{limits}"

    def _make_recipe(self, moves: Sequence[Move]) -> Recipe:
        return make_recipe(self._recipe, list_returned(self._choice, moves), self._reasons)

    def _finish(self, moves: Sequence[Move]) -> AutoResult:
        """A success only if these very moves have passed a real check."""
        moves = tuple(moves)
        verdict = self._verdicts.get(moves, self._verdicts[()])
        returned = list_returned(self._choice, moves)
        return AutoResult(
            recipe=self._make_recipe(moves),
            returned=tuple((*one, self._reasons[one[0]]) for one in returned),
            passed=verdict.passed,
            checks=self._num_quick + self._num_bundles,
            bundles=self._num_bundles,
            verdict=verdict,
        )

    def _tell(self, what: str, moves: Sequence[Move], verdict: Verdict) -> None:
        count = len(list_returned(self._choice, moves))
        state = "the gate holds" if verdict.passed else verdict.unmet[0].message
        self._log(f"auto: {what}, {count} given back: {state}")


def _in_order(moves: Sequence[Move], some: Sequence[Move]) -> tuple[Move, ...]:
    return tuple(move for move in moves if move in some)
