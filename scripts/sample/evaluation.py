"""Held-out exact match by task, from drawn groups that training never meets."""

from __future__ import annotations

from random import Random

import torch
from tokenizers import Tokenizer

from sample.batches import make_batch
from sample.losses import answer, count_exact, measure_cell_loss, see
from sample.reader import Reader
from sample.tasks import TASKS, Shape, make_example, pick_shape


def pick_held_out(
    task: str, num_examples: int, group_size: int, first_group: int = 0
) -> list[tuple[Shape, int, int]]:
    """(shape, group, examples) until num_examples are reached."""
    groups, left = [], num_examples
    while left > 0:
        group = first_group + len(groups)
        groups.append(
            (
                pick_shape(task, Random(f"held-out shape/{task}/{group}")),
                group,
                min(group_size, left),
            )
        )
        left -= group_size
    return groups


@torch.inference_mode()
def measure_exact(
    reader: Reader, tokenizer: Tokenizer, num_examples: int
) -> dict[str, dict[str, float]]:
    """Per task: exact match of the greedy answers, and of the filled cells' labels."""
    table = {}
    for task in TASKS:
        exact, cells, groups = 0, 0.0, pick_held_out(task, num_examples, 10)
        for shape, group, size in groups:
            examples = [make_example("held-out", shape, group, place) for place in range(size)]
            batch = make_batch(tokenizer, shape, examples)
            image_embeds = see(reader, batch)
            cells += float(measure_cell_loss(reader.cells(image_embeds), batch.cell_labels)[1])
            exact += count_exact(answer(reader, batch, image_embeds), batch)
        table[task] = {
            "exact": round(exact / num_examples, 4),
            "cells": round(cells / len(groups), 4),
        }
    return table
