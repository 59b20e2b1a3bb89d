"""Compute M-RoPE position ids (time, row, column) of text, pictures and clips, whole or in steps.

A text token at position p has the ids (p, p, p). A visual block of t frame pairs, h rows and w
columns of *merged* tokens that starts at p gives its token (a, b, c) the ids (p + a, p + b, p + c),
in the order time, row, column. The rules differ only in where the text after it goes on:

    "paper"               p + max(t, h, w), one more than the highest id used (arXiv 2409.12191)
    "transformers>=5.3"   p + max(h, w): ids overlap after a clip with more frame pairs than rows
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import MropeRule, TokenIds
from ..errors import PromptError
from .patches import Grid

Kind = Literal["text", "image", "video"]


def make_position_ids(
    input_ids: NDArray[np.int64],
    image_grids: Sequence[Grid],
    video_grids: Sequence[Grid],
    tokens: TokenIds,
    merge_size: int,
    rule: MropeRule,
) -> NDArray[np.int64]:
    """Position ids of a whole prompt; the first token after it has the highest of them plus one.

    Args:
        input_ids: int64[L], pads already repeated once per visual token.
        image_grids: grids of the images in prompt order, in patches before merging.
        video_grids: the same for the clips.
        tokens: tells the pads apart.
        merge_size: patches per visual token along one side.
        rule: where the text after a visual block goes on.

    Returns:
        int64[3, L], rows time, height, width.

    Raises:
        PromptError: pads and grids don't match.
        ValueError: `input_ids` is no vector of integers, a grid can't be merged, unknown rule.
    """
    if input_ids.ndim != 1 or input_ids.dtype.kind not in "iu":
        raise ValueError(
            f"input_ids are {input_ids.dtype}{list(input_ids.shape)}, needed integers [L]"
        )
    state = PositionState(merge_size, rule)
    pads: dict[Kind, int] = {"image": tokens.image_pad, "video": tokens.video_pad}
    grids: dict[Kind, list[Grid]] = {"image": list(image_grids), "video": list(video_grids)}
    used: dict[Kind, int] = {"image": 0, "video": 0}
    is_image = input_ids == pads["image"]
    is_pad = is_image | (input_ids == pads["video"])
    pad_indices = np.flatnonzero(is_pad)
    num_seen = 0  # pads placed so far: pad_indices[num_seen] starts the next block
    while num_seen < len(pad_indices):
        start = int(pad_indices[num_seen])
        state.append_text(start - state.length)
        kind: Kind = "image" if is_image[start] else "video"
        if used[kind] == len(grids[kind]):
            raise PromptError(_mismatch(kind, input_ids, pads[kind], grids[kind], merge_size))
        size = _merged(grids[kind][used[kind]], merge_size)
        num_tokens = size.t * size.h * size.w
        block = input_ids[start : start + num_tokens]
        if len(block) < num_tokens or not (block == pads[kind]).all():
            raise PromptError(_mismatch(kind, input_ids, pads[kind], grids[kind], merge_size))
        state.append_visual(kind, grids[kind][used[kind]])
        used[kind] += 1
        num_seen += num_tokens
    for kind in ("image", "video"):
        if used[kind] != len(grids[kind]):
            raise PromptError(_mismatch(kind, input_ids, pads[kind], grids[kind], merge_size))
    state.append_text(len(input_ids) - state.length)
    return state.position_ids


class _Segment(NamedTuple):
    """A run of text, or the first `length` tokens of a visual block of t × h × w merged tokens."""

    start: int  # index of its first token
    length: int  # in tokens
    position: int  # id of its first token
    size: Grid | None  # of the whole block, after merging; None: text

    @property
    def extent(self) -> Grid:
        """Frame pairs, rows and columns that its tokens reach into; text is a diagonal."""
        if self.size is None:
            return Grid(self.length, self.length, self.length)
        _, height, width = self.size
        return Grid(
            -(-self.length // (height * width)),
            min(height, -(-self.length // width)),
            min(width, self.length),
        )

    def ids(self) -> NDArray[np.int64]:
        """int64[3, length]."""
        if self.size is None:
            line = np.arange(self.position, self.position + self.length, dtype=np.int64)
            return np.broadcast_to(line, (3, self.length))
        block = np.empty((3, *self.size), np.int64)
        t, h, w = (np.arange(self.position, self.position + n, dtype=np.int64) for n in self.size)
        block[0], block[1], block[2] = t[:, None, None], h[:, None], w
        return block.reshape(3, -1)[:, : self.length]


@dataclass(slots=True)
class PositionState:
    """The position ids of a sequence that grows, is cut back and is forked.

    Always equal to `make_position_ids` of the tokens it stands for. Not safe to change from two
    threads; forks are independent of each other.
    """

    merge_size: int
    rule: MropeRule
    _segments: list[_Segment]

    def __init__(self, merge_size: int, rule: MropeRule) -> None:
        """An empty sequence.

        Args:
            merge_size: patches per visual token along one side.
            rule: where the text after a visual block goes on.
        """
        if rule not in get_args(MropeRule):
            raise ValueError(
                f"M-RoPE rule is {rule!r}, needed one of {', '.join(get_args(MropeRule))}"
            )
        if merge_size < 1:
            raise ValueError(f"merge_size is {merge_size}, needed a positive number of patches")
        self.merge_size = merge_size
        self.rule = rule
        self._segments = []

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self._segments[-1].start + self._segments[-1].length if self._segments else 0

    @property
    def next_position(self) -> int:
        """One more than the highest id so far: where decoding goes on under either rule."""
        return max((s.position + max(s.extent) for s in self._segments), default=0)

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """int64[3, length], computed anew at each call."""
        return self.make_ids(0, self.length)

    def make_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """The ids of tokens `start` to `stop`, int64[3, stop - start]."""
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"tokens {start} to {stop} are not within the {self.length} there are")
        ids = np.empty((3, stop - start), np.int64)
        first = max(0, bisect.bisect_right(self._segments, start, key=lambda s: s.start) - 1)
        for segment in self._segments[first:]:
            if segment.start >= stop:
                break
            low, high = max(start, segment.start), min(stop, segment.start + segment.length)
            ids[:, low - start : high - start] = segment.ids()[
                :, low - segment.start : high - segment.start
            ]
        return ids

    def append_text(self, num_tokens: int) -> None:
        """Go on with `num_tokens` tokens of prompt text."""
        self._append_text(num_tokens, self._prompt_position)

    def append_answer(self, num_tokens: int) -> None:
        """Go on with `num_tokens` decoded tokens.

        The same as text by the paper's rule. By the other one decoding starts at the highest id
        plus one, as transformers' does, though text of the prompt would not.
        """
        self._append_text(num_tokens, self.next_position)

    def append_image(self, grid: Grid) -> None:
        """Go on with a picture's visual tokens; its grid is in patches before merging."""
        self.append_visual("image", grid)

    def append_video(self, grid: Grid) -> None:
        """Go on with a clip's visual tokens; its grid is in patches before merging."""
        self.append_visual("video", grid)

    def append_visual(self, kind: Kind, grid: Grid) -> None:
        """What `append_image` and `append_video` do.

        Raises:
            ValueError: the grid is not positive or not made of whole visual tokens, or an image has
                more than one frame.
        """
        size = _merged(grid, self.merge_size)
        if kind == "image" and size.t != 1:
            raise ValueError(f"image grid {tuple(grid)} has {size.t} frames, an image has 1")
        self._segments.append(
            _Segment(self.length, size.t * size.h * size.w, self._prompt_position, size)
        )

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        A visual block may be cut too: its first tokens keep their ids, and what is appended then
        goes on after the frame pairs, rows and columns that they reach into.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"can't rewind {self.length} tokens to {length}")
        keep = bisect.bisect_left(self._segments, length, key=lambda s: s.start)
        del self._segments[keep:]
        if self._segments:
            last = self._segments[-1]
            self._segments[-1] = last._replace(length=min(last.length, length - last.start))

    def fork(self) -> PositionState:
        """A copy that grows on its own; costs one pointer per run of text or visual block."""
        twin = PositionState(self.merge_size, self.rule)
        twin._segments = self._segments.copy()
        return twin

    @property
    def _prompt_position(self) -> int:
        """Where the next piece of a prompt starts."""
        if not self._segments:
            return 0
        last = self._segments[-1]
        t, h, w = last.extent
        return last.position + (max(t, h, w) if self.rule == "paper" else max(h, w))

    def _append_text(self, num_tokens: int, position: int) -> None:
        if num_tokens < 0:
            raise ValueError(f"can't append {num_tokens} tokens")
        if num_tokens == 0:
            return
        last = self._segments[-1] if self._segments else None
        if last and last.size is None and last.position + last.length == position:
            self._segments[-1] = last._replace(length=last.length + num_tokens)
        else:
            self._segments.append(_Segment(self.length, num_tokens, position, None))


def _merged(grid: Grid, merge_size: int) -> Grid:
    """The grid in visual tokens."""
    t, h, w = (int(n) for n in grid)
    if min(t, h, w) < 1 or h % merge_size or w % merge_size:
        raise ValueError(
            f"grid {(t, h, w)} needs positive sides, rows and columns multiples of {merge_size}"
        )
    return Grid(t, h // merge_size, w // merge_size)


def _mismatch(
    kind: Kind, input_ids: NDArray[np.int64], pad: int, grids: Sequence[Grid], merge_size: int
) -> str:
    sizes = [_merged(grid, merge_size) for grid in grids]
    num_needed = sum(t * h * w for t, h, w in sizes)
    return (
        f"prompt has {int((input_ids == pad).sum())} {kind} pads, the {len(grids)} {kind} grids "
        f"{[tuple(map(int, grid)) for grid in grids][:8]} need {num_needed}, "
        "block after block without other tokens in between"
    )
