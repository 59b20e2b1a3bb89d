"""Cut a data set into shards, and merge the checks of the shards into that of the whole.

A shard takes every n-th example, so that all shards hold a like share of each task. What is known
of single examples is put back into the data's order, and the answers are scored together as an
undivided check does it: scores and intervals are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..check.levels import score_tasks
from ..check.plan import Level
from ..compare.findings import CheckResult, RangeFinding
from ..data.examples import DataSet

# What decides whether two shards are of one check
_SHARED = ("bundle", "reference", "data", "data_sha256")


def take_shard(data: DataSet, index: int, count: int) -> DataSet:
    """Examples index, index + count, ...; name and hash stay those of the whole.

    Raises:
        ValueError: no such shard, or an empty one.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}, needed 0 to {count - 1}")
    examples = data.examples[index::count]
    if not examples:
        raise ValueError(
            f"{data.name} has {len(data.examples)} examples, too few for {count} shards"
        )
    return replace(data, examples=examples, skipped={})


def merge_checks(
    shards: Sequence[CheckResult],
    wholes: Sequence[CheckResult],
    data: DataSet,
    levels: Sequence[Level],
) -> CheckResult:
    """One check out of those of its parts.

    Args:
        shards: of every shard of `data`, in any order, with texts if `levels` has texts or tasks;
            none if nothing is measured by example.
        wholes: speed and layers, which are measured on all the data.
        data: the whole.
        levels: what the check is of.

    Raises:
        ValueError: parts of different checks, or not all examples once.
    """
    parts = [*shards, *wholes]
    _check_same(parts)
    order = {example.id: place for place, example in enumerate(data.examples)}
    if shards and (found := sum(shard.num_examples for shard in shards)) != len(order):
        raise ValueError(f"the shards hold {found} examples, {data.name} {len(order)}")

    def collect(section: str) -> tuple[Any, ...]:
        found = [finding for shard in shards for finding in getattr(shard, section)]
        return tuple(sorted(found, key=lambda finding: order[finding.example]))

    texts = collect("texts")
    if "tasks" in levels and [text.example for text in texts] != list(order):
        raise ValueError(f"the shards have not one answer to each example of {data.name}")
    return replace(
        parts[0],
        num_examples=len(order),
        skipped=dict(data.skipped),
        embeddings=collect("embeddings"),
        logits=collect("logits"),
        texts=texts if "texts" in levels else (),
        tasks=score_tasks(data.examples, texts) if "tasks" in levels else (),
        speed=tuple(finding for whole in wholes for finding in whole.speed),
        layers=tuple(finding for whole in wholes for finding in whole.layers),
        ranges=_join_ranges(parts),
        environment=_join_environments(parts),
    )


def _check_same(results: Sequence[CheckResult]) -> None:
    for name in _SHARED:
        values = sorted({getattr(result, name) for result in results})
        if len(values) != 1:
            raise ValueError(f"checks of different {name} can't be merged: {', '.join(values)}")


def _join_ranges(parts: Sequence[CheckResult]) -> tuple[RangeFinding, ...]:
    """Of each tensor the largest value that any part saw."""
    largest: dict[tuple[str, str], RangeFinding] = {}
    for one in (finding for part in parts for finding in part.ranges):
        known = largest.get((one.graph, one.tensor))
        if known is None or not known.largest >= one.largest:
            largest[one.graph, one.tensor] = one
    return tuple(largest.values())


def _join_environments(parts: Sequence[CheckResult]) -> dict[str, str]:
    """Each entry once; where machines of a cluster differ, all values; not all parts answer."""
    names = dict.fromkeys(name for part in parts for name in part.environment)
    return {
        name: " | ".join(sorted({p.environment[name] for p in parts if name in p.environment}))
        for name in names
    }
