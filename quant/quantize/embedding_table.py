"""Make the embedding table of a quantized bundle from the float one.

The host reads it by rows: int8 and FP8 rows have a scale each; "lm_head" keeps no table at all, the
rows are read out of the decoder graph's own last matrix, which holds the same numbers where the
checkpoint ties the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...runtime.bundle.embedding_table import Blocks, EmbeddingTable, RowScales, TableDtype
from ...runtime.bundle.embeddings import Embeddings
from ...runtime.bundle.manifest import FileRecord
from ...runtime.files.regular_file import open_regular
from ..files.hashed_file import HashedFile
from ..graph.linears import GraphWeights
from ..recipe.recipe import WEIGHT_ONLY, TableFormat
from ..rounding.fp8 import pack_table_rows
from .linear_nodes import QuantizedLinear

TABLE_FILE = "embedding.bin"
SCALES_FILE = "embedding.scales.bin"
HEAD_WEIGHT = "lm_head.weight"  # initializer of the float decoder
BLOCK_ROWS = 2048
_DTYPES: dict[str, TableDtype] = {"int8": "int8", "fp8": "float8_e4m3fn"}


@dataclass(frozen=True, slots=True)
class WrittenTable:
    """A table and the files that were written for it; none where it shares the lm_head's."""

    table: EmbeddingTable
    files: dict[str, FileRecord]


def is_tied(folder: Path, table: EmbeddingTable, weights: GraphWeights) -> bool:
    """Whether the head holds the table's numbers, so that rows can be read out of it.

    A float16 bundle has its head rounded to float16, its table as the checkpoint has it.
    """
    head, dtype = weights.read(HEAD_WEIGHT), weights.stored_dtype(HEAD_WEIGHT)
    embeddings = Embeddings(folder, table)
    rows = np.empty((BLOCK_ROWS, table.shape[1]), np.float32)
    for start in range(0, table.shape[0], BLOCK_ROWS):
        ids = np.arange(start, min(start + BLOCK_ROWS, table.shape[0]))
        embeddings.gather(ids, rows[: len(ids)])
        if not np.array_equal(rows[: len(ids)].astype(dtype), head[ids].astype(dtype)):
            return False
    return True


def share_head(
    table: EmbeddingTable, head: QuantizedLinear, file: str, codes_at: int, scales_at: int
) -> EmbeddingTable:
    """The table whose rows are the head's.

    Args:
        table: of the float bundle.
        head: weight-only, in MatMulNBits' layout.
        file: that holds the head's matrix.
        codes_at: its offset in the file, bytes.
        scales_at: of its scales.
    """
    bits = WEIGHT_ONLY[head.recipe.format]
    packing = Blocks("blocks", 4 if bits == 4 else 8, head.recipe.block_size, file, scales_at)
    return EmbeddingTable(file, "uint8", table.shape, packing, codes_at)


def measure_table(source: Path, table: EmbeddingTable, format: TableFormat) -> int:
    """Bytes that `write_table` will write."""
    num_tokens, size = table.shape
    sizes = {"lm_head": 0, "float": (source / table.file).stat().st_size}
    return sizes.get(format, num_tokens * (size + 4))  # codes of a byte, a float32 scale a row


def write_table(
    source: Path,
    table: EmbeddingTable,
    format: TableFormat,
    folder: Path,
    advance: Callable[[int], None],
) -> WrittenTable:
    """Copy or quantize the table into `folder`, some rows at a time."""
    embeddings = Embeddings(source, table)
    scales = []
    if format == "float":
        with open_regular(source / table.file) as old, HashedFile(folder / TABLE_FILE) as file:
            while block := old.read(1 << 20):
                file.write(block)
                advance(len(block))
        return WrittenTable(
            EmbeddingTable(TABLE_FILE, table.dtype, table.shape), {TABLE_FILE: file.record}
        )
    with HashedFile(folder / TABLE_FILE) as file:
        for start in range(0, table.shape[0], BLOCK_ROWS):
            ids = np.arange(start, min(start + BLOCK_ROWS, table.shape[0]))
            rows = np.empty((len(ids), table.shape[1]), np.float32)
            embeddings.gather(ids, rows)
            codes, row_scales = pack_table_rows(rows, format)  # type: ignore[arg-type]
            file.write(codes)
            scales.append(row_scales)
            advance(codes.nbytes)
    with HashedFile(folder / SCALES_FILE) as scales_file:
        scales_file.write(np.concatenate(scales))
    return WrittenTable(
        EmbeddingTable(TABLE_FILE, _DTYPES[format], table.shape, RowScales("rows", SCALES_FILE)),
        {TABLE_FILE: file.record, SCALES_FILE: scales_file.record},
    )
