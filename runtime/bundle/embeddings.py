"""Token embeddings: a table mapped into memory, read row by row; image rows put in their places."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..files.regular_file import check_regular
from .embedding_table import Blocks, EmbeddingTable, TableDtype

# How numpy reads what is stored: it has neither bfloat16 nor float8, so their bits.
_STORED: dict[TableDtype, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("<i1"),
    "float8_e4m3fn": np.dtype("<u1"),
    "uint8": np.dtype("<u1"),
}
_SCALES = np.dtype("<f4")


class Embeddings:
    """The token embedding table of a bundle; only the rows that are read come into memory."""

    def __init__(self, folder: Path, table: EmbeddingTable) -> None:
        """Map the table.

        Raises:
            BundleError: a file is not there or has another size.
        """
        packing = table.packing
        self._hidden_size = table.shape[1]
        self._decode = _DECODERS[table.dtype]
        if isinstance(packing, Blocks):
            self._decode = partial(_decode_blocks, bits=packing.bits)
        self._codes = _map_array(
            folder / table.file,
            _STORED[table.dtype],
            table.stored_shape,
            table.offset,
            f"{table.shape} of {table.description}",
            is_alone=packing is None and table.offset == 0,
        )
        self._scales = packing and _map_array(
            folder / packing.scales_file,
            _SCALES,
            table.scales_shape,
            packing.scales_offset,
            f"{table.scales_shape} scales",
        )

    @property
    def hidden_size(self) -> int:
        """D."""
        return self._hidden_size

    def gather(self, token_ids: NDArray[np.int64], out: NDArray[np.floating]) -> None:
        """Write the rows of some tokens.

        Args:
            token_ids: int64[L], each below the vocabulary's size.
            out: float[L, D], written.
        """
        values = self._decode(self._codes[token_ids])
        if self._scales is not None:
            scales = self._scales[token_ids]
            values = values.reshape(*scales.shape, -1) * scales[:, :, None]
            values = values.reshape(len(token_ids), -1)[:, : self._hidden_size]
        out[...] = values


def _map_array(
    path: Path,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    what: str,
    *,
    is_alone: bool = False,
) -> NDArray[Any]:
    """Map an array of a file, which must end with it if nothing else may be there."""
    needed = offset + math.prod(shape) * dtype.itemsize
    try:
        size = path.stat().st_size
        if size < needed or (is_alone and size != needed):
            raise BundleError(f"{path} has {size} bytes, {what} need {needed}")
        check_regular(path)
        array = np.memmap(path, dtype, "r", offset, shape)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if hasattr(mmap, "MADV_RANDOM"):  # rows are far apart: reading ahead would waste memory
        array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    return array


def _decode_floats(rows: NDArray[Any]) -> NDArray[Any]:
    return rows


def _decode_bfloat16(rows: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (rows.astype(np.uint32) << 16).view(np.float32)


def _decode_int8(rows: NDArray[np.int8]) -> NDArray[np.float32]:
    return rows.astype(np.float32)


def _decode_float8(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _FLOAT8.take(rows)


def _decode_blocks(rows: NDArray[np.uint8], bits: int = 8) -> NDArray[np.float32]:
    """Codes less their middle; with 4 bits the even element of a pair is in the low half."""
    codes = rows if bits == 8 else np.stack((rows & 15, rows >> 4), axis=-1)
    return codes.astype(np.float32) - np.float32(1 << (bits - 1))


def _list_float8() -> NDArray[np.float32]:
    """Every float8_e4m3fn by its bits: sign, 4 bits of exponent (bias 7), 3 of mantissa."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    # exponent 0: no leading one, and the unit of exponent 1
    magnitude = np.ldexp(mantissa + 8.0 * (exponent > 0), np.maximum(exponent, 1) - 10)
    magnitude[bits & 127 == 127] = np.nan  # there is no infinity
    return np.where(bits < 128, magnitude, -magnitude).astype(np.float32)


_FLOAT8 = _list_float8()
_DECODERS: dict[TableDtype, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "float32": _decode_floats,
    "float16": _decode_floats,
    "bfloat16": _decode_bfloat16,
    "int8": _decode_int8,
    "float8_e4m3fn": _decode_float8,
    "uint8": _decode_blocks,
}


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
