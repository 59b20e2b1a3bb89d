"""Decide which levels a check compares, and whether sides, data and gate allow them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from ..data.examples import DataSet
    from ..gate.gate import Gate

Level = Literal["settings", "embeddings", "logits", "texts", "tasks", "speed", "layers"]
LEVELS: tuple[Level, ...] = get_args(Level)
# A gate's tables -> the level that measures them, where it is called otherwise
_LEVEL_OF: dict[str, str] = {
    "pixel_values": "embeddings",
    "before_merger": "embeddings",
    "image_embeds": "embeddings",
    "text": "texts",
}
_ALWAYS: Level = "settings"  # costs nothing, and whatever else is compared hangs on it


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


def choose_levels(plan: CheckPlan, data: DataSet, *, with_bundle: bool) -> tuple[Level, ...]:
    """The levels of a check, the settings always among them.

    Raises:
        ValueError: one that was asked for can't be compared.
    """
    is_labelled = any(example.answers for example in data.examples)
    why_not = {level: "" for level in LEVELS}
    if not with_bundle:
        why_not["speed"] = "it needs a float bundle as the reference, not a checkpoint"
    if not is_labelled:
        why_not["tasks"] = f"no example of {data.name} has an answer to score with"
    if plan.levels is None:
        return tuple(level for level in LEVELS if not why_not[level])
    for level in plan.levels:
        if why_not[level]:
            raise ValueError(f"the level {level} can't be compared: {why_not[level]}")
    return tuple(level for level in LEVELS if level in plan.levels or level == _ALWAYS)


def check_gate(gate: Gate, levels: Sequence[Level]) -> None:
    """Refuse a gate that the levels don't measure, before the long work.

    Raises:
        ValueError: names the tables of the gate.
    """
    measured = {*levels, _ALWAYS}
    missing = [t for t in sorted(gate.levels) if _LEVEL_OF.get(t, t) not in measured]
    if missing:
        raise ValueError(
            f"{gate.name} limits {', '.join(missing)}, which is not measured: this check compares "
            f"{', '.join(levels)}"
        )


def check_decidable(gate: Gate, data: DataSet) -> None:
    """Refuse a gate that no bundle could pass with this data: there is too little of it.

    Raises:
        ValueError: names the limit, and how many examples it takes.
    """
    from ..data.examples import NO_TASK  # with what options alone don't need
    from ..gate.limits import find_undecidable

    counts = Counter(example.task or NO_TASK for example in data.examples if example.answers)
    for limit in gate.limits:
        if why := find_undecidable(counts, limit):
            raise ValueError(f"{gate.name}: {limit.key} can't be decided with {data.name}: {why}")
