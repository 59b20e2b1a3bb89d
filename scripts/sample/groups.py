"""Which groups of a split are drawn: one grid a group, so that figures can be compared."""

from __future__ import annotations

from random import Random

from sample.tasks import Shape, pick_shape

GROUP_SIZE = 10  # held-out examples of one grid
FIRST_GROUP = 1000  # the first ones were looked at while the tasks and the training were adjusted


def pick_groups(
    task: str,
    num_examples: int,
    group_size: int,
    first_group: int = 0,
    *,
    split: str = "held-out",
) -> list[tuple[Shape, int, int]]:
    """(shape, group, examples) until num_examples are reached."""
    groups, left = [], num_examples
    while left > 0:
        group = first_group + len(groups)
        shape = pick_shape(task, Random(f"{split} shape/{task}/{group}"))
        groups.append((shape, group, min(group_size, left)))
        left -= group_size
    return groups
