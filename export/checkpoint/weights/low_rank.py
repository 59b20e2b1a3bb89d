"""Low-rank updates of a matrix, added to its rows while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ....runtime.files.regular_file import open_regular
from .same_values import widen

if TYPE_CHECKING:
    from .safetensors_header import TensorSource

# The blocks of a layer follow one another, so its factors are read once; q, k, v and the end of the
# layer before may be in work at a time.
_KEPT_FACTORS = 4


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update scale * B @ A of a matrix [out, in].

    Attributes:
        down: A, [r, in].
        up: B, [out, r].
        scale: alpha / r, or alpha / sqrt(r).
    """

    down: TensorSource
    up: TensorSource
    scale: float

    def add_to(self, rows: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        """Rows of the matrix with the update.

        Args:
            rows: float32[n, in], from row `start` of the matrix.
            start: number of the first row.

        Returns:
            float32[n, in]: a new array.

        Raises:
            OSError: the adapter's file can't be read.
        """
        up = _read_matrix(self.up)[start : start + len(rows)]
        update = up @ _read_matrix(self.down)
        update *= np.float32(self.scale)
        update += rows
        return update


@lru_cache(maxsize=2 * _KEPT_FACTORS)
def _read_matrix(source: TensorSource) -> NDArray[np.float32]:
    with open_regular(source.path) as file:
        file.seek(source.offset)
        data = file.read(source.nbytes)
    if len(data) < source.nbytes:
        raise OSError(f"{source.path} was truncated while it was read")
    values = widen(data, source.dtype)
    assert values is not None  # the types of an adapter's tensors are checked when it is opened
    return values.reshape(source.shape)


def forget_factors() -> None:
    """Free the factors that were read last, and read them anew next time."""
    _read_matrix.cache_clear()
