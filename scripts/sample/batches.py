"""Groups of equal grids -> tensors for one training or evaluation pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sample.cells import make_cell_labels
from sample.examples import Example
from sample.pixels import resize_frames
from sample.spec import CELL_PX
from sample.tasks import Shape
from sample.words import render_prompt

PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples of one shape. L: the longest prompt and answer."""

    shape: Shape
    pixels: Tensor  # uint8[B, T * 2, H, W, 3]
    cell_labels: Tensor  # int64[B * T * h * w, slots]
    input_ids: Tensor  # int64[B, L]
    position_ids: Tensor  # int64[3, B, L]
    visual_slots: Tensor  # bool[B, L]
    answer_slots: Tensor  # bool[B, L]
    answer_ids: Tensor  # int64[A]
    answer_lengths: list[int]  # per example, <|im_end|> counted


def make_position_ids(prefix: int, grid: tuple[int, int, int], suffix: int) -> np.ndarray:
    """M-RoPE ids by the paper's rule: prefix text, one vision block, suffix text.

    Args:
        prefix: tokens before the block.
        grid: (t, h, w) after merging.
        suffix: tokens behind it.

    Returns:
        int64[3, L].
    """
    block = prefix + np.indices(grid).reshape(3, -1)
    after = prefix + max(grid) + np.arange(suffix)
    return np.concatenate([np.tile(np.arange(prefix), (3, 1)), block, np.tile(after, (3, 1))], 1)


def make_batch(tokenizer: Tokenizer, shape: Shape, examples: list[Example]) -> Batch:
    """Resize, label, tokenize and pad a group."""
    end = tokenizer.token_to_id("<|im_end|>")
    rows, cols = shape.cells
    resized = rows * CELL_PX, cols * CELL_PX
    prompts, answers, positions, prefixes = [], [], [], []
    for example in examples:
        kind = "video" if example.is_clip else "image"
        pad = tokenizer.token_to_id(PADS[kind])
        ids = tokenizer.encode(render_prompt(example.question, kind), add_special_tokens=False).ids
        prefix = ids.index(pad)
        answer = [*tokenizer.encode(example.answer, add_special_tokens=False).ids, end]
        prompts.append([*ids[:prefix], *[pad] * shape.num_tokens, *ids[prefix + 1 :]])
        answers.append(answer)
        prefixes.append(prefix)
        grid = (shape.num_slices, rows, cols)
        positions.append(make_position_ids(prefix, grid, len(ids) - prefix - 1 + len(answer) - 1))
    length = max(p.shape[1] for p in positions)
    size = len(examples)
    input_ids = np.full((size, length), end, np.int64)
    position_ids = np.zeros((3, size, length), np.int64)
    visual_slots = np.zeros((size, length), bool)
    answer_slots = np.zeros((size, length), bool)
    for i, (prompt, answer, position, prefix) in enumerate(
        zip(prompts, answers, positions, prefixes, strict=True)
    ):
        tokens = prompt + answer[:-1]  # the last answer token is predicted, never read
        input_ids[i, : len(tokens)] = tokens
        position_ids[:, i, : len(tokens)] = position
        visual_slots[i, prefix : prefix + shape.num_tokens] = True
        answer_slots[i, len(prompt) - 1 : len(tokens)] = True
    return Batch(
        shape=shape,
        pixels=torch.from_numpy(np.stack([resize_frames(e.frames) for e in examples])),
        cell_labels=torch.from_numpy(
            np.concatenate([make_cell_labels(e, shape.cells, resized) for e in examples])
        ),
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        visual_slots=torch.from_numpy(visual_slots),
        answer_slots=torch.from_numpy(answer_slots),
        answer_ids=torch.tensor([token for answer in answers for token in answer]),
        answer_lengths=[len(answer) for answer in answers],
    )
