"""Keep inputs and outputs of every linear layer of a reference until the bundle's turn.

A layer works row by row, so some rows of each input (a picture, a prompt) are enough. They lie on
disk: all layers of a 2B model together have 1.6 million channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..graph.feeds import Prompt
from .shelf import ArrayShelf

MAX_ROWS = 512  # of one layer, over all inputs; a few at least of each
MIN_ROWS_EACH = 16
# (layer, number of the input, x float32[R, in], y float32[R, out])
OnRows = Callable[[str, int, NDArray[np.float32], NDArray[np.float32]], None]
OnStep = Callable[[str], None]


class LayerTracer(Protocol):
    """A model whose layers can be looked into."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def trace(
        self, prompts: Sequence[Prompt], layers: Sequence[str], on_rows: OnRows, on_step: OnStep
    ) -> None:
        """Run prompts with their answers and tell some rows of each layer.

        Args:
            prompts: pictures and token ids; the ViT's inputs are numbered over all their pictures
                and clips in order, the decoder's are the prompts.
            layers: which ones, by name; one that the model computes otherwise is left out.
            on_rows: called for every layer and input, with the rows of `pick_rows`.
            on_step: told before each step.
        """
        ...

    def read_vector(self, name: str) -> NDArray[np.float32]:
        """A norm's weight by its name in the checkpoint, float32[channels]."""
        ...

    def read_matrix(self, layer: str) -> NDArray[np.float32]:
        """A layer's matrix float32[out, in]."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def pick_rows(num_rows: int, num_inputs: int) -> NDArray[np.intp]:
    """Indices of the rows to look at of one input, spread over it, its first row among them.

    Returns:
        int64[num_picked], ascending.
    """
    count = min(num_rows, max(MIN_ROWS_EACH, MAX_ROWS // max(1, num_inputs)))
    return np.linspace(0, num_rows - 1, count).round().astype(np.intp)


class RowShelf:
    """Rows on disk."""

    def __init__(self, arrays: ArrayShelf) -> None:
        """Of nothing yet."""
        self._arrays = arrays
        self._numbers: dict[str, list[int]] = {}

    def put(self, layer: str, number: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Keep the rows of one layer and input.

        Args:
            layer: its name.
            number: of the input.
            x: float32[rows, in], what goes into the layer.
            y: float32[rows, out], what comes out.

        Raises:
            OSError: the disk is full.
        """
        self._arrays.put(f"{layer}.{number}", {"x": x, "y": y})
        self._numbers.setdefault(layer, []).append(number)

    def list_inputs(self, layer: str) -> Sequence[int]:
        """Numbers of the inputs that a layer has rows of."""
        return self._numbers.get(layer, ())

    def read(self, layer: str, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The rows x float32[rows, in] and y float32[rows, out] of one layer and input."""
        arrays = self._arrays.read(f"{layer}.{number}")
        return arrays["x"], arrays["y"]
