"""Which groups a step holds: tasks by weight, sizes by a token budget, the harder numbers later."""

from __future__ import annotations

from random import Random

from tokenizers import Tokenizer

from sample.batches import Batch, make_batch
from sample.examples import Example
from sample.tasks import PAGE, TASKS, Shape, make_example, pick_shape

GROUP_TOKENS = 420  # visual tokens of one group: many small pictures or few large ones
GROUP_EXAMPLES = 28  # at most


def make_level(step: int, ramp_steps: int) -> float:
    """Difficulty from 0.2 to 1, linear over the first ramp_steps."""
    return min(1.0, 0.2 + 0.8 * step / max(1, ramp_steps))


def pick_groups(seed: int, step: int, num_groups: int, num_pages: int) -> list[Shape]:
    """The shapes of one step, the same on every process; num_pages of them are practice pages."""
    rng = Random(f"groups/{seed}/{step}")
    names = list(TASKS)
    # Systematic sampling: evenly spaced marks on the wheel of weights, each step a mix.
    total = sum(task.weight for task in TASKS.values())
    spin, chosen = rng.random(), []
    num_tasks = num_groups - num_pages
    for mark in range(num_tasks):
        at = (mark + spin) / num_tasks * total
        for name in names:
            at -= TASKS[name].weight
            if at < 0:
                break
        chosen.append(pick_shape(name, rng))
    chosen += [pick_shape(PAGE, rng) for _ in range(num_pages)]
    rng.shuffle(chosen)
    return chosen


def is_wanted(example: Example, place: int) -> bool:
    """Of receipts that ask no row out of several, a quarter is enough: totals are learned first."""
    is_easy = "total" in example.question or len({g.tag for g in example.glyphs[0]}) == 2
    return example.task != "receipt" or not is_easy or place % 4 == 0


def make_groups(
    tokenizer: Tokenizer,
    seed: int,
    step: int,
    num_groups: int,
    rank: int,
    num_ranks: int,
    num_pages: int,
    level: float,
) -> list[Batch]:
    """This process's groups of one step."""
    batches = []
    for slot, shape in enumerate(pick_groups(seed, step, num_groups, num_pages)):
        if slot % num_ranks != rank:
            continue
        group = (seed * 1_000_000 + step) * num_groups + slot
        size = max(4, min(GROUP_EXAMPLES, GROUP_TOKENS // shape.num_tokens))
        examples, place = [], 0
        while len(examples) < size:
            example = make_example("train", shape, group, place, level)
            if is_wanted(example, place):
                examples.append(example)
            place += 1
        batches.append(make_batch(tokenizer, shape, examples))
    return batches
