"""Held-out exact match by task, from drawn groups that training never meets."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from sample.batches import make_batch
from sample.groups import GROUP_SIZE, pick_groups
from sample.losses import answer, count_exact, measure_cell_loss, see
from sample.reader import Reader
from sample.tasks import TASKS, make_example


@torch.inference_mode()
def measure_exact(
    reader: Reader, tokenizer: Tokenizer, num_examples: int
) -> dict[str, dict[str, float]]:
    """Per task: exact match of the greedy answers, and of the filled cells' labels."""
    table = {}
    for task in TASKS:
        exact, cells, groups = 0, 0.0, pick_groups(task, num_examples, GROUP_SIZE)
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
