"""What lies in every 28x28 cell: drawn glyphs -> class labels for the loss on the visual tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sample.examples import CHARS, TAGS, Example
from sample.spec import CELL_PX, FRAMES_PER_PATCH

CELL_SLOTS = 4  # characters told apart in one cell, from the left; a fifth is not labelled
NUM_CHAR_CLASSES = len(CHARS) + 1  # 0 is: nothing
NUM_INDEX_CLASSES = 9  # 0: nothing; else the first character's place in its string, from 1
NUM_TAG_CLASSES = len(TAGS) + 1
NUM_LABELS = CELL_SLOTS + 2


def make_cell_labels(
    example: Example, cells: tuple[int, int], resized: tuple[int, int]
) -> NDArray[np.int64]:
    """Labels of one example.

    A glyph lies in the cell that holds its centre, after the resize; of a frame pair the first
    frame counts.

    Args:
        example: the drawn thing.
        cells: (rows, columns) of visual tokens.
        resized: (height, width) in pixels after smart_resize.

    Returns:
        int64[T * rows * columns, CELL_SLOTS + 2]: characters in order, index, tag.
    """
    width, height = example.frames[0].size
    rows, cols = cells
    scale_x, scale_y = resized[1] / width / CELL_PX, resized[0] / height / CELL_PX
    frames = example.glyphs[::FRAMES_PER_PATCH]
    labels = np.zeros((len(frames), rows, cols, NUM_LABELS), np.int64)
    for t, glyphs in enumerate(frames):
        held: dict[tuple[int, int], list] = {}
        for glyph in glyphs:
            x, y = glyph.center
            cell = min(rows - 1, max(0, int(y * scale_y))), min(cols - 1, max(0, int(x * scale_x)))
            held.setdefault(cell, []).append(glyph)
        for (row, col), inside in held.items():
            label = labels[t, row, col]
            letters = sorted((g for g in inside if g.char), key=lambda g: g.center[0])
            for slot, glyph in enumerate(letters[:CELL_SLOTS]):
                label[slot] = CHARS.index(glyph.char) + 1
            if letters:
                label[CELL_SLOTS] = 1 + min(NUM_INDEX_CLASSES - 2, max(0, letters[0].index))
            tags = [g.tag for g in inside if g.tag]
            if tags:
                label[CELL_SLOTS + 1] = TAGS.index(tags[0]) + 1
    return labels.reshape(-1, NUM_LABELS)
