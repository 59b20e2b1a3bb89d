"""Read the frames of a clip from files or pictures, decoded one by one when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .asked_size import open_at_size
from .bicubic import RgbImage


class Frames(Sequence[RgbImage]):
    """The frames of a clip; each is opened when it is asked for, and not kept.

    A clip of 768 frames in Full HD would fill 6 GB at once; cut into patches it takes a few
    megabytes. Safe to read from several threads.
    """

    def __init__(
        self,
        sources: Sequence[str | Path | bytes | Image.Image | NDArray[np.uint8]],
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Remember where the frames are.

        Args:
            sources: of each frame what `images.open_image` takes, an array is uint8[H, W, 3].
            size: (height, width) that each frame is resized to first; see `asked_size`.
        """
        self._sources = sources
        self._size = size

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> RgbImage: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> RgbImage | Frames:
        if isinstance(index, slice):
            return Frames(self._sources[index], size=self._size)
        return open_at_size(self._sources[index], self._size)
