"""The two losses: the next answer token, and what lies in each visual token's cell."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sample.batches import Batch
from sample.pixels import cut_patches
from sample.reader import Reader
from sample.spec import MERGE

# Characters, index, tag: receipts hang on the tag, which tells a price's cell whose price it is.
PART_WEIGHTS = (0.8, 0.8, 0.8, 0.8, 0.5, 2.3)
EMPTY_SHARE = 0.15  # of the cell loss: most cells are empty, and soon learned


def measure_cell_loss(logits: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy, filled and empty slots weighed apart.

    Args:
        logits: one [M, classes] per slot, index and tag.
        labels: int64[M, slots], 0 is: nothing.

    Returns:
        The loss, and the share of filled cells with every label right.
    """
    total, right = torch.zeros(()), torch.ones(len(labels), dtype=torch.bool)
    for part, label, weight in zip(logits, labels.T, PART_WEIGHTS, strict=True):
        loss = weight * functional.cross_entropy(part.float(), label, reduction="none")
        filled = label > 0
        total = total + (1 - EMPTY_SHARE) * loss[filled].sum() / max(1, int(filled.sum()))
        total = total + EMPTY_SHARE * loss[~filled].sum() / max(1, int((~filled).sum()))
        right &= part.argmax(-1) == label
    return total / len(logits), right[(labels > 0).any(-1)].float().mean()


def see(reader: Reader, batch: Batch) -> Tensor:
    """The visual tokens of a batch: [M, D]."""
    rows, cols = batch.shape.cells
    patches = cut_patches(batch.pixels, reader.visual.patch_embed.proj.weight.dtype)
    return reader.visual(patches, (rows * MERGE, cols * MERGE)).flatten(0, 1)


def answer(reader: Reader, batch: Batch, image_embeds: Tensor) -> Tensor:
    """Logits of the batch's answer tokens: [A, V]."""
    return reader.answer_logits(
        batch.input_ids, batch.visual_slots, image_embeds, batch.position_ids, batch.answer_slots
    )


def count_exact(logits: Tensor, batch: Batch) -> int:
    """Examples whose every answer token, the end too, is the likeliest: what greedy would write."""
    hits = (logits.argmax(-1) == batch.answer_ids).split(batch.answer_lengths)
    return sum(bool(part.all()) for part in hits)
