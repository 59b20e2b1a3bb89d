"""The layout of stored token embeddings: the contract between a table's writer and its reader.

A table is [V, D], its rows one after another, little-endian. It may share its bytes with the
lm_head of the decoder graph: then it is a part of that graph's data file, at an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TableDtype = Literal["float32", "float16", "bfloat16", "int8", "float8_e4m3fn", "uint8"]


@dataclass(frozen=True, slots=True)
class RowScales:
    """One scale a row, float32[V]: value = code * scale.

    What an lm_head quantized per output channel has as well.
    """

    layout: Literal["rows"]
    scales_file: str
    scales_offset: int = 0  # bytes


@dataclass(frozen=True, slots=True)
class Blocks:
    """One scale a block, float32[V, blocks]: value = (code - 2^(bits - 1)) * scale.

    The layout of ONNX Runtime's MatMulNBits without zero points: codes uint8[V, blocks,
    block_size * bits / 8], with 4 bits the even element of a pair in the low half; the last block
    of a row is padded.
    """

    layout: Literal["blocks"]
    bits: Literal[4, 8]
    block_size: int
    scales_file: str
    scales_offset: int = 0  # bytes


@dataclass(frozen=True, slots=True)
class EmbeddingTable:
    """Token embeddings: an array in a file, mapped into memory.

    Attributes:
        dtype: of what is stored: int8 and float8_e4m3fn go with RowScales, uint8 with Blocks.
        shape: (vocab_size, hidden_size), of the values.
        packing: how the values come from what is stored; None: they are it.
        offset: bytes before the table in its file.
    """

    file: str
    dtype: TableDtype
    shape: tuple[int, int]
    packing: RowScales | Blocks | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"shape {self.shape} is empty")
        packing = self.packing
        fits = {
            "int8": isinstance(packing, RowScales),
            "float8_e4m3fn": isinstance(packing, RowScales),
            "uint8": isinstance(packing, Blocks),
        }.get(self.dtype, packing is None)
        if not fits:
            layout = packing.layout if packing else "no"
            raise ValueError(f"a table of {self.dtype} cannot have {layout} scales")
        if isinstance(packing, Blocks) and (packing.block_size < 2 or packing.block_size % 2):
            raise ValueError(f"block_size is {packing.block_size}, needed an even number")
        if min(self.offset, packing.scales_offset if packing else 0) < 0:
            raise ValueError("an offset is negative")

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read."""
        return (self.file, self.packing.scales_file) if self.packing else (self.file,)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the array in `file`: (V, D), or (V, blocks, bytes of a block)."""
        if isinstance(self.packing, Blocks):
            block_bytes = self.packing.block_size * self.packing.bits // 8
            return (self.shape[0], self._num_blocks, block_bytes)
        return self.shape

    @property
    def scales_shape(self) -> tuple[int, int]:
        """Of the scales: (V, 1) or (V, blocks)."""
        return (self.shape[0], self._num_blocks)

    @property
    def _num_blocks(self) -> int:
        if isinstance(self.packing, Blocks):
            return -(-self.shape[1] // self.packing.block_size)
        return 1

    @property
    def description(self) -> str:
        """As precisions are named: "bfloat16", "int8 rows", "int4 block 64"."""
        if isinstance(self.packing, Blocks):
            return f"int{self.packing.bits} block {self.packing.block_size}"
        return self.dtype if self.packing is None else f"{self.dtype} rows"
