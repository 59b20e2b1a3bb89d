"""Read a checkpoint tensor as it lies in a bundle: checked, cast or packed block by block.

No tensor is ever whole in memory. Blocks are read with pread, not through a memory map, so that the
process owns nothing but the block it works on. Matrices keep the checkpoint's [out, in] layout (the
graphs use Gemm with transB and MatMulNBits), so nothing is transposed and every format is a stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...quant.rounding.weight_only import num_blocks, pack_rows
from ..checkpoint.packed.matrix import PackedSource, dequantize
from ..checkpoint.weights.tensor_source import ELEMENT_BYTES, TensorSource
from .weight_format import WeightFormat

BITS = {"int8": 8, "int4": 4}
BLOCK_ELEMENTS = 1 << 18  # 1 MiB once it is float32: every pass over it stays in the cache

_NUMPY_DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
    "U8": np.dtype("u1"),  # codes of a bundle, which a checkpoint has none of
}
_IR_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
# Every 16-bit float, so that a cast is one gather: exact, and faster than NumPy's own.
_ALL_16_BIT = np.arange(1 << 16, dtype=np.uint32)
_HALF_AS_FLOAT = _ALL_16_BIT.astype(np.uint16).view(np.float16).astype(np.float32)
with np.errstate(over="ignore"):
    _BFLOAT_AS_HALF = (_ALL_16_BIT << 16).view(np.float32).astype(np.float16).view(np.uint16).copy()

# (raw block [rows, K], safetensors dtype, its first row) -> one array per stored tensor
Encoder = Callable[[NDArray, str, int], tuple[NDArray, ...]]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a data file."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return -(-int(np.prod(self.shape, dtype=np.int64)) * self.dtype.bitwidth // 8)


@dataclass(frozen=True, slots=True)
class Weight:
    """Checkpoint tensors, their rows one after another -> the tensors that are stored for them.

    The first stored tensor is written block by block; the further ones (a 64th of its size: scales)
    are kept until it is complete.
    """

    stored: tuple[StoredTensor, ...]
    sources: tuple[TensorSource, ...]
    encode: Encoder
    whole: bool = False  # read each source in one block (small tensors that are folded)
    # A packed source -> the stored tensors' rows, in the place of reading and encoding
    carry: Callable[[PackedSource], tuple[NDArray, ...]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.stored)

    def blocks(self) -> Iterator[Block]:
        """The blocks in file order."""
        for i, source in enumerate(self.sources):
            row_size = source.shape[-1] if len(source.shape) > 1 else 1
            num_rows = int(np.prod(source.shape, dtype=np.int64)) // row_size
            is_whole = self.whole or isinstance(source, PackedSource)
            step = num_rows if is_whole else max(1, BLOCK_ELEMENTS // row_size)
            for start in range(0, num_rows, step):
                stop = min(start + step, num_rows)
                is_last = i + 1 == len(self.sources) and stop == num_rows
                yield Block(self, source, row_size, start, stop, is_last)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows start..stop of one source, the unit of work."""

    weight: Weight
    source: TensorSource
    row_size: int
    start: int
    stop: int
    is_last: bool  # it completes its weight

    @property
    def nbytes(self) -> int:
        """Bytes read for it."""
        return (self.stop - self.start) * self.row_size * ELEMENT_BYTES[self.source.dtype]

    def encode(self) -> tuple[NDArray, ...]:
        """Read and convert; ready to be written.

        Returns:
            The stored tensors' rows: dtype[rows, in] of a float weight, of a packed one
            uint8[rows, blocks, bytes] and float32[rows, blocks].

        Raises:
            ValueError: names the tensor and what is wrong with its values.
            OSError: the file could not be read.
        """
        if self.weight.carry is not None and isinstance(self.source, PackedSource):
            return self.weight.carry(self.source)
        raw, dtype = self._read(), self.source.dtype
        if self.source.updates:
            raw, dtype = to_float32(raw, dtype), "F32"
            for update in self.source.updates:
                raw = update.add_to(raw, self.start)
        try:
            return self.weight.encode(raw, dtype, self.start)
        except ValueError as error:
            raise ValueError(f"{self.source.name} in {self.source.path}: {error}") from error

    def _read(self) -> NDArray:
        if isinstance(self.source, PackedSource):
            matrix = self.source.matrix
            return dequantize(matrix, matrix.read())
        dtype = _NUMPY_DTYPES[self.source.dtype]
        data = np.empty((self.stop - self.start, self.row_size), dtype)
        buffer = data.view(np.uint8).reshape(-1).data
        position = self.source.offset + self.start * self.row_size * dtype.itemsize
        file = os.open(self.source.path, os.O_RDONLY)
        try:
            while buffer:
                count = os.preadv(file, [buffer], position)
                if count == 0:
                    raise OSError(f"{self.source.path} was truncated while it was read")
                buffer, position = buffer[count:], position + count
        finally:
            os.close(file)
        return data


def float_weight(name: str, sources: tuple[TensorSource, ...], format: WeightFormat) -> Weight:
    """Sources as one float32 or float16 tensor, their first dimensions added up."""
    dtype, encode = {
        "fp32": (ir.DataType.FLOAT, encode_float32),
        "fp16": (ir.DataType.FLOAT16, _encode_float16),
    }[format]
    rows = sum(source.shape[0] for source in sources)
    return Weight((StoredTensor(name, dtype, (rows, *sources[0].shape[1:])),), sources, encode)


def copied_weight(name: str, source: TensorSource) -> Weight:
    """A tensor as it is in the checkpoint, only checked to be finite."""
    stored = StoredTensor(name, _IR_DTYPES[source.dtype], source.shape)
    return Weight((stored,), (source,), _encode_copy)


def packed_weight(
    name: str, sources: tuple[TensorSource, ...], format: WeightFormat, block_size: int
) -> Weight:
    """Matrices [out, in] as one matrix of block-wise integers and its scales."""
    bits = BITS[format]
    rows, row_size = sum(source.shape[0] for source in sources), sources[0].shape[1]
    blocks = num_blocks(row_size, block_size)
    stored = (
        StoredTensor(f"{name}.packed", ir.DataType.UINT8, (rows, blocks, block_size * bits // 8)),
        StoredTensor(f"{name}.scales", ir.DataType.FLOAT, (rows, blocks)),
    )

    def encode(raw: NDArray, dtype: str, _: int) -> tuple[NDArray, ...]:
        return pack_rows(to_float32(raw, dtype), bits, block_size)

    return Weight(stored, sources, encode)


def to_float32(raw: NDArray, dtype: str) -> NDArray[np.float32]:
    """Raw float32[...], or 16-bit floats as uint16[...] -> float32[...], exactly."""
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "F16":
        return _HALF_AS_FLOAT.take(raw)
    return raw


def encode_float32(raw: NDArray, dtype: str, _: int) -> tuple[NDArray, ...]:
    """Any float as float32[...], exactly; refuses what is not finite.

    Args:
        raw: float32[...], or uint16[...] of 16-bit floats.
        dtype: "F32", "F16" or "BF16".
    """
    check_finite(raw, dtype)
    return (to_float32(raw, dtype),)


def _encode_copy(raw: NDArray, dtype: str, _: int) -> tuple[NDArray, ...]:
    check_finite(raw, dtype)
    return (raw,)


def _encode_float16(raw: NDArray, dtype: str, _: int) -> tuple[NDArray, ...]:
    if dtype == "F16":
        half = raw
    elif dtype == "BF16":
        half = _BFLOAT_AS_HALF.take(raw)
    else:
        with np.errstate(over="ignore"):
            half = raw.astype(np.float16).view(np.uint16)
    if (half & 0x7FFF).max(initial=0) >= 0x7C00:
        check_finite(raw, dtype)
        largest = float(np.abs(to_float32(raw, dtype)).max())
        raise ValueError(f"{largest:g} is over float16's 65504: use fp32, int8 or int4")
    return (half,)


def check_finite(raw: NDArray, dtype: str) -> None:
    """Refuse NaN and infinite values.

    Args:
        raw: float32[...], or uint16[...] of 16-bit floats.
        dtype: "F32", "F16" or "BF16".

    Raises:
        ValueError: there are some.
    """
    if dtype == "F32":
        finite = np.isfinite(raw).all()
    else:  # an exponent of ones; works on the bits, which NumPy does many at a time
        finite = (raw & 0x7FFF).max(initial=0) < (0x7F80 if dtype == "BF16" else 0x7C00)
    if not finite:
        raise ValueError("the tensor holds NaN or infinite values")
