"""The six tasks by name; (split, task, group, place) fixes an example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from sample.charts import draw_bars, draw_dial
from sample.clips import draw_clip
from sample.examples import Example
from sample.papers import draw_number, draw_page, draw_price_tag, draw_receipt
from sample.spec import CELL_PX


@dataclass(frozen=True, slots=True)
class Task:
    """How one kind of example is drawn."""

    draw: Callable[..., Example]
    rows: range  # of visual tokens
    cols: range
    most_cells: int
    weight: float  # share of the training groups
    most_frames: int = 1


TASKS = {
    "number": Task(draw_number, range(2, 7), range(2, 9), 32, 1.2),
    "price tag": Task(draw_price_tag, range(3, 6), range(5, 9), 35, 1.2),
    "receipt": Task(draw_receipt, range(3, 7), range(7, 9), 48, 3.4),
    "bars": Task(draw_bars, range(4, 7), range(5, 8), 36, 0.5),
    "dial": Task(draw_dial, range(4, 7), range(4, 7), 36, 0.3),
    "clip": Task(draw_clip, range(3, 5), range(3, 5), 16, 0.7, 8),
}
PAGE = "page"  # practice for the ViT, never asked about
LESSONS = TASKS | {PAGE: Task(draw_page, range(3, 7), range(4, 8), 35, 0.0)}
SPLITS = ("train", "calibration", "held-out", "shown")  # "shown": the pictures in samples/pictures


@dataclass(frozen=True, slots=True)
class Shape:
    """What the examples of one group have in common."""

    task: str
    cells: tuple[int, int]  # rows, columns of visual tokens
    num_slices: int  # frame pairs

    @property
    def num_tokens(self) -> int:
        """Visual tokens of one example."""
        return self.num_slices * self.cells[0] * self.cells[1]


def pick_shape(task: str, rng: Random) -> Shape:
    """A grid, and for clips a length, for one group."""
    kind = LESSONS[task]
    cells = rng.choice([(r, c) for r in kind.rows for c in kind.cols if r * c <= kind.most_cells])
    return Shape(task, cells, rng.randint(1, (kind.most_frames + 1) // 2))


def _pick_side(rng: Random, num_cells: int) -> int:
    """A side in pixels that smart_resize takes to num_cells * 28; every second is that already."""
    exact = num_cells * CELL_PX
    return exact if rng.random() < 0.5 else exact + rng.randint(-12 if num_cells > 2 else 0, 12)


def make_example(split: str, shape: Shape, group: int, place: int, level: float = 1.0) -> Example:
    """The example at one place of one group of one split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, need one of {SPLITS}")
    kind = LESSONS[shape.task]
    rng = Random(f"{split}/{shape.task}/{group}/{place}")
    rows, cols = shape.cells
    size = _pick_side(rng, cols), _pick_side(rng, rows)
    if kind.most_frames > 1:
        num_frames = 2 * shape.num_slices - (
            1 if shape.num_slices > 1 and rng.random() < 0.25 else 0
        )
        return kind.draw(rng, size, level, num_frames)
    return kind.draw(rng, size, level)
