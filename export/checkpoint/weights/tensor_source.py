"""A stored tensor: where its bytes lie, and the low-rank updates added to its rows when read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....runtime.files.regular_file import open_regular

# Bytes of one element. Only the floats are weights of a supported model; the others are legal in
# the file (an extra tensor that we then name) and must be measured rightly.
ELEMENT_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
# The blocks of a layer follow one another, so its factors are read once; q, k, v and the end of the
# layer before may be in work at a time.
_KEPT_FACTORS = 4


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a tensor's row-major little-endian bytes lie."""

    name: str
    dtype: str  # a key of ELEMENT_BYTES
    shape: tuple[int, ...]
    path: Path
    offset: int  # from the start of the file
    nbytes: int
    updates: tuple[LowRank, ...] = ()  # of adapters, added to its rows when they are read


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


def widen(block: bytes, dtype: str) -> NDArray[np.float32] | None:
    """Floats of a file as float32[n], exactly; None for types that no model has."""
    if dtype == "F32":
        return np.frombuffer(block, "<f4")
    if dtype == "F16":
        return np.frombuffer(block, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(block, "<u2").astype(np.uint32) << 16).view(np.float32)
    return None
