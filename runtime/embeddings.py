"""Token embeddings: a table mapped into memory, read row by row; image rows put in their places."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .embedding_table import EmbeddingTable
from .errors import BundleError

# bfloat16 is read as its bits: numpy has no such type.
_STORED = {"bfloat16": np.dtype("<u2"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


class Embeddings:
    """The token embedding table of a bundle; only the rows that are read come into memory."""

    def __init__(self, folder: Path, table: EmbeddingTable) -> None:
        """Map the table.

        Raises:
            BundleError: the file is not there or has another size.
        """
        path = folder / table.file
        stored = _STORED[table.dtype]
        needed = table.shape[0] * table.shape[1] * stored.itemsize
        try:
            size = path.stat().st_size
            if size != needed:
                raise BundleError(
                    f"{path} has {size} bytes, {table.shape} of {table.dtype} need {needed}"
                )
            self._table = np.memmap(path, stored, "r", shape=table.shape)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}") from error
        if hasattr(mmap, "MADV_RANDOM"):  # rows are far apart: reading ahead would waste memory
            self._table._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        self._is_bfloat16 = table.dtype == "bfloat16"

    @property
    def hidden_size(self) -> int:
        """D."""
        return self._table.shape[1]

    def gather(self, token_ids: NDArray[np.int64], out: NDArray[np.floating]) -> None:
        """Write the rows of some tokens.

        Args:
            token_ids: int64[L], each below the vocabulary's size.
            out: float[L, D], written.
        """
        rows = self._table[token_ids]
        if self._is_bfloat16:
            out[...] = (rows.astype(np.uint32) << 16).view(np.float32)
        else:
            out[...] = rows


def scatter_visual_rows(
    is_visual: NDArray[np.bool_],
    visual_embeds: NDArray[np.floating],
    first: int,
    out: NDArray[np.floating],
) -> int:
    """Put visual tokens where their pads are.

    Args:
        is_visual: bool[S], the pads among these S prompt tokens.
        visual_embeds: float[M, D], all visual tokens of the prompt, in its order.
        first: how many of them stand before these S tokens.
        out: float[S, D], written at the pads.

    Returns:
        How many of them have been placed after these S tokens.
    """
    count = int(is_visual.sum())
    if count:
        out[is_visual] = visual_embeds[first : first + count]
    return first + count
