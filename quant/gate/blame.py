"""Find the layers that are to blame for a failed limit, by giving layers back and measuring.

A candidate is given back to the reference, alone, and what the failed level loses less is measured:
it is the cause if most of the damage goes with it. The other way round, everything else is given
back and the candidate stays. A single layer is looked for first, then layers that are unusual for
their precision together, then all of one precision, then all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..compare.findings import LayerFinding
from .limits import tell_apart
from .unusual import judged_db

# Share of the damage that goes when the cause is given back
CAUSE_SHARE = 0.5
# A walk each. With the bundle as it is, everything given back, and the cause alone at the end: 12
MAX_SINGLES = 4
MAX_GROUPS = 4
_EXACT_DB = 120.0  # no layer with less error than this does anything


@dataclass(frozen=True, slots=True)
class Trial:
    """One walk with some layers given back.

    Attributes:
        given_back: in words.
        num_layers: how many that are.
        value: of the metric.
        repaired: share of the damage that is gone; below 0 it has become worse.
    """

    given_back: str
    num_layers: int
    value: float
    repaired: float


@dataclass(frozen=True, slots=True)
class Blame:
    """Why one level fails.

    Attributes:
        limit: key of the failed limit.
        metric: what was measured: "image_embeds.cosine", for answers "logits.kl_mean".
        cause: in words; "" if no layers explain it.
        layers: the same by name.
        before: the metric with the bundle as it is, on the examples of the trials.
        after: with the cause given back.
        alone: with everything else given back; NaN where that was not tried.
        repaired: share of the damage that goes with the cause.
        num_examples: that were looked at, the worst ones.
        trials: everything that was tried, in order.
        reason: why layers are not the cause; "" where that was measured.
    """

    limit: str
    metric: str
    cause: str
    layers: tuple[str, ...]
    before: float
    after: float
    alone: float
    repaired: float
    num_examples: int
    trials: tuple[Trial, ...]
    reason: str = ""


# Layers given back -> (the metric, damage: a mean square or nats, 0 for the reference)
Measure = Callable[[frozenset[str]], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Candidate:
    words: str
    layers: frozenset[str]


def find_cause(
    limit: str,
    metric: str,
    layers: Sequence[LayerFinding],
    unusual: Sequence[LayerFinding],
    measure: Measure,
    num_examples: int,
) -> Blame:
    """Look for the smallest set of layers that explains a damage.

    Args:
        limit: key of the limit that fails.
        metric: name of the metric that `measure` returns.
        layers: that can be given back and have a part in this level.
        unusual: of these, the ones whose error their precision doesn't explain.
        measure: runs the model.
        num_examples: that it runs on.
    """
    worst: dict[str, LayerFinding] = {}
    for finding in sorted(layers, key=judged_db):
        if judged_db(finding) < _EXACT_DB:
            worst.setdefault(finding.layer, finding)
    before, damage = measure(frozenset())
    trials: list[Trial] = []
    found: dict[frozenset[str], Trial] = {}

    def look(candidate: _Candidate) -> Trial:
        if candidate.layers not in found:
            value, left = measure(candidate.layers)
            repaired = 1 - left / damage if math.isfinite(left) else -math.inf
            trial = Trial(candidate.words, len(candidate.layers), value, repaired)
            found[candidate.layers] = trial
            trials.append(trial)
        return found[candidate.layers]

    def close(candidate: _Candidate | None, *, with_rest: bool = False) -> Blame:
        trial = found[candidate.layers] if candidate else None
        alone = math.nan
        if candidate and with_rest and (rest := frozenset(worst) - candidate.layers):
            alone = look(_Candidate(f"everything but {candidate.words}", rest)).value
        return Blame(
            limit,
            metric,
            cause=candidate.words if candidate else "",
            layers=tuple(n for n in worst if candidate and n in candidate.layers),
            before=before,
            after=trial.value if trial else math.nan,
            alone=alone,
            repaired=trial.repaired if trial else 0.0,
            num_examples=num_examples,
            trials=tuple(trials),
        )

    if not worst or not damage > 0 or not math.isfinite(damage):
        return close(None)
    everything = _Candidate(f"all {len(worst)} layers together", frozenset(worst))
    suspects = [f.layer for f in unusual if f.layer in worst]
    groups = _group(list(worst.values()))
    best_group = max(groups, key=lambda one: look(one).repaired) if len(groups) > 1 else everything
    look(best_group)
    likely = dict.fromkeys([*suspects, *(n for n in worst if n in best_group.layers)])
    singles = [_Candidate(name, frozenset({name})) for name in list(likely)[:MAX_SINGLES]]
    best = max(singles, key=lambda one: look(one).repaired)
    if look(best).repaired >= CAUSE_SHARE:
        return close(best, with_rest=True)
    if len(suspects) > 1:
        words = f"{len(suspects)} layers that are unusual for their precision, together"
        together = _Candidate(words, frozenset(suspects))
        if look(together).repaired >= CAUSE_SHARE:
            return close(together, with_rest=True)
    for candidate in (best_group, everything):
        if look(candidate).repaired >= CAUSE_SHARE:
            return close(candidate, with_rest=candidate is not everything)
    return close(None)


def describe_blame(blame: Blame) -> str:
    """`visual.blocks.3.mlp.fc2 (image_embeds.cosine 0.93 -> 0.99 when it alone is given back)`."""
    if blame.reason:
        return blame.reason
    if not blame.cause:
        most = max(blame.trials, key=lambda trial: trial.repaired, default=None)
        text = "no linear layers explain it"
        if most is not None and most.repaired > 0:
            text += f": {most.given_back} given back take {most.repaired:.0%} of the damage"
        return text
    before, after = tell_apart(blame.before, blame.after)
    is_one = len(blame.layers) == 1
    text = f"{blame.cause} ({blame.metric} {before} -> {after} when "
    text += "it alone is given back" if is_one else "given back"
    text += f", {blame.repaired:.0%} of the damage"
    if not is_one:
        singles = [trial for trial in blame.trials if trial.num_layers == 1]
        most = max(singles, key=lambda trial: trial.repaired, default=None)
        if most is not None:
            share = max(0.0, most.repaired)
            text += f"; no single layer explains it, the most is {most.given_back} with {share:.0%}"
    return text + ")"


def _group(layers: Sequence[LayerFinding]) -> list[_Candidate]:
    """All layers of a graph that have one precision; the groups with most error first."""
    groups: dict[tuple[str, str], list[LayerFinding]] = {}
    for finding in layers:
        graph = "ViT" if finding.layer.startswith("visual.") else "decoder"
        groups.setdefault((graph, finding.precision), []).append(finding)

    def power(members: Sequence[LayerFinding]) -> float:
        return sum(10 ** (-max(-100.0, judged_db(f)) / 10) for f in members)

    ranked = sorted(groups.items(), key=lambda item: power(item[1]), reverse=True)
    found = []
    for (graph, precision), members in ranked[:MAX_GROUPS]:
        words = f"{len(members)} {precision} layers of the {graph} together"
        if len(members) == 1:
            words = members[0].layer
        found.append(_Candidate(words, frozenset(f.layer for f in members)))
    return found
