"""Convert the weights of the graph that is read into those of the one written, cast or unpacked.

They stay streams: what is laid out here is read, converted and written block by block by
data_file.py. With links nothing is written at all: an initializer is a part of the checkpoint's own
file, which lies beside the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from ...quant.graph.files import locate
from ..checkpoint.weights.tensor_source import TensorSource
from ..graphs.data_file import DataFile
from ..graphs.weights import (
    Block,
    Encoder,
    StoredTensor,
    Weight,
    check_finite,
    encode_float32,
    to_float32,
)
from .blocks import read_levels
from .emitter import NUMPY_TYPES, TYPE_NAMES, Emitter

_SOURCE_DTYPES = {
    int(TensorProto.FLOAT): "F32",
    int(TensorProto.FLOAT16): "F16",
    int(TensorProto.BFLOAT16): "BF16",
}
_IR_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
    "float8_e4m3fn": ir.DataType.FLOAT8E4M3FN,
}
# safetensors' name of a compute type: only such tensors can be linked
LINKABLE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

# (rows of codes, number of the first) -> rows of new codes and of their scales
Recode = Callable[[NDArray, int], tuple[NDArray, NDArray]]
Form = tuple[str, str, tuple[int, ...]]  # name, type and shape of a new initializer


@dataclass(frozen=True, slots=True)
class Located:
    """One tensor of a weight."""

    weight: Weight
    index: int

    @property
    def stored(self) -> StoredTensor:
        """What it is in the graph that is read."""
        return self.weight.stored[self.index]


def locate_weights(files: Iterable[DataFile]) -> dict[str, Located]:
    """Tensors that a builder has laid out."""
    return {
        stored.name: Located(weight, i)
        for file in files
        for weight in file.weights
        for i, stored in enumerate(weight.stored)
    }


def locate_bundle(folder: Path, model: onnx.ModelProto) -> dict[str, Located]:
    """Tensors that lie in a bundle's data files."""
    return {
        tensor.name: Located(_read_back(folder, tensor), 0)
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }


class Initializers:
    """Gives the graph that is written its initializers."""

    def __init__(
        self,
        emitter: Emitter,
        model: onnx.ModelProto,
        located: Mapping[str, Located],
        data: DataFile,
        linked: set[Path] | None = None,
    ) -> None:
        """Take over a graph's.

        Args:
            emitter: of the graph that is written.
            model: the graph that is read.
            located: its tensors that lie outside of it.
            data: where new tensors go.
            linked: not None: files whose tensors are used as they are; those used are added.
        """
        self._emitter = emitter
        self._located = located
        self._data = data
        self._linked = linked
        self._inline = {
            tensor.name: onnx.numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if tensor.data_location != TensorProto.EXTERNAL
        }

    def __contains__(self, name: str) -> bool:
        return name in self._inline or name in self._located

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an initializer."""
        inline = self._inline.get(name)
        return self._located[name].stored.shape if inline is None else inline.shape

    def type(self, name: str) -> str:
        """Of an initializer, as the graph that is read has it."""
        if name in self._inline:
            array = self._inline[name]
            return TYPE_NAMES[int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))]
        return TYPE_NAMES[int(self._located[name].stored.dtype)]

    def read(self, name: str) -> NDArray:
        """A small tensor, whole: any[...] in its stored type."""
        return self.read_rows(name, 0, self.shape(name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray:
        """Rows of a bundle's tensor as they are stored: any[stop - start, ...]."""
        if name in self._inline:
            return self._inline[name][start:stop]
        weight = self._located[name].weight
        (source,) = weight.sources
        row_size = source.shape[-1] if len(source.shape) > 1 else 1
        (rows,) = Block(weight, source, row_size, start, stop, False).encode()
        return rows

    def floats(self, name: str, dtype: str, *, positive: bool = False) -> str:
        """A float initializer in another float type; the name of the value.

        Args:
            name: of the initializer.
            dtype: its new type.
            positive: it holds scales: none may become 0.
        """
        if name in self._inline:
            return self._emitter.constant(name, self._inline[name], dtype)
        located = self._located[name]
        if self._linked is not None and (value := self._link(name, located, dtype)):
            return value
        new = name if self.type(name) == dtype else f"{name}.{dtype}"
        cast = _cast(located, dtype, positive)
        return self._add((new, dtype, located.stored.shape), located, cast)

    def codes(self, name: str) -> str:
        """An initializer as it is: int8, float8, an index."""
        if name in self._inline:
            return self._emitter.constant(name, self._inline[name])
        located = self._located[name]

        def copy(raw: NDArray, dtype: str, start: int) -> NDArray:
            return located.weight.encode(raw, dtype, start)[located.index]

        return self._add((name, self.type(name), located.stored.shape), located, copy)

    def recode(self, name: str, codes: Form, scales: Form, recode: Recode) -> tuple[str, str]:
        """Codes as other codes with other scales, some rows at a time."""
        if name in self._inline:
            new_codes, new_scales = recode(self._inline[name], 0)
            new, dtype, shape = codes
            if dtype == "int4":
                new_codes = read_levels(new_codes, 4, "levels", shape[1]).astype(ml_dtypes.int4)
            constant = self._emitter.constant
            return constant(new, new_codes.reshape(shape)), constant(scales[0], new_scales)
        located = self._located[name]

        def encode(raw: NDArray, stored: str, start: int) -> tuple[NDArray, ...]:
            return recode(located.weight.encode(raw, stored, start)[located.index], start)

        return self._lay_out((codes, scales), located, encode)  # type: ignore[return-value]  # two forms

    def _add(
        self, form: Form, located: Located, encode: Callable[[NDArray, str, int], NDArray]
    ) -> str:
        def encode_one(raw: NDArray, stored: str, start: int) -> tuple[NDArray, ...]:
            return (encode(raw, stored, start),)

        (name,) = self._lay_out((form,), located, encode_one)
        return name

    def _lay_out(
        self, forms: tuple[Form, ...], located: Located, encode: Encoder
    ) -> tuple[str, ...]:
        stored = tuple(StoredTensor(name, _IR_TYPES[dtype], shape) for name, dtype, shape in forms)
        weight = Weight(stored, located.weight.sources, encode, located.weight.whole)
        return tuple(self._emitter.initialize(_refer(t)) for t in self._data.add(weight))

    def _link(self, name: str, located: Located, dtype: str) -> str | None:
        """The checkpoint's own tensors, joined in the graph; None: they are of another type.

        Norms are float32 in the graph: theirs are cast there.
        """
        assert self._linked is not None
        sources = located.weight.sources
        own = {source.dtype for source in sources}
        stored = LINKABLE[self._emitter.compute]
        if located.weight.encode is not encode_float32 or own != {stored}:
            return None
        parts = []
        for source in sources:
            self._linked.add(source.path)
            tensor = ir.ExternalTensor(
                source.path.name,
                source.offset,
                source.nbytes,
                _IR_TYPES[self._emitter.compute],
                shape=ir.Shape(source.shape),
                name=source.name,
            )
            parts.append(self._emitter.initialize(_refer(tensor)))
        value = parts[0]
        if len(parts) > 1:
            value = self._emitter.op("Concat", parts, f"/{name}/Concat", axis=0)
        return self._emitter.cast(value, dtype)


def _cast(located: Located, dtype: str, positive: bool) -> Callable[[NDArray, str, int], NDArray]:
    """Floats as another type; bits that have it already pass as they are."""
    is_plain = located.weight.encode is encode_float32

    def encode(raw: NDArray, stored: str, start: int) -> NDArray:
        if is_plain and stored == LINKABLE[dtype]:
            check_finite(raw, stored)
            return raw
        whole = located.weight.encode(raw, stored, start)[located.index]
        if whole.dtype == np.uint16:  # float16's or bfloat16's bits
            whole = to_float32(whole, stored)
        return whole if dtype == "float32" else narrow_rows(whole, dtype, positive=positive)

    return encode


def narrow_rows(rows: NDArray, dtype: str, *, positive: bool = False) -> NDArray:
    """Narrow weights or scales: float32[rows, ...] -> any[rows, ...], as `dtype` says.

    Tiny weights may become 0, scales not.

    Raises:
        ValueError: one doesn't fit.
    """
    target = NUMPY_TYPES[dtype]
    with np.errstate(over="ignore"):
        narrowed = rows.astype(target)
    if not np.isfinite(narrowed.astype(np.float32)).all():
        raise ValueError(f"{np.abs(rows).max():g} is no {dtype}: use --dtype bf16")
    if positive:
        smallest = np.array(ml_dtypes.finfo(target).smallest_subnormal).astype(target)
        narrowed = np.where(narrowed == 0, smallest, narrowed)
    return narrowed


def _read_back(folder: Path, tensor: onnx.TensorProto) -> Weight:
    """A bundle's tensor as a weight that is read again."""
    file, offset, length = locate(tensor)
    shape = tuple(tensor.dims)
    dtype = _SOURCE_DTYPES.get(tensor.data_type, "U8")
    rows = shape[0] if shape else 1
    # Codes are read as bytes: a row of int4 has half as many as it has values
    source_shape = (rows, length // rows) if dtype == "U8" else shape
    source = TensorSource(tensor.name, dtype, source_shape, folder / file, offset, length)
    stored = StoredTensor(tensor.name, ir.DataType(tensor.data_type), shape)

    def copy(raw: NDArray, _: str, __: int) -> tuple[NDArray, ...]:
        return (raw,)

    return Weight((stored,), (source,), copy if dtype == "U8" else encode_float32)


def _refer(tensor: ir.ExternalTensor) -> onnx.TensorProto:
    made = onnx.TensorProto(name=tensor.name)
    made.data_type = int(tensor.dtype)
    made.dims.extend(tensor.shape.numpy())
    made.data_location = TensorProto.EXTERNAL
    entries = (
        ("location", tensor.location),
        ("offset", tensor.offset or 0),
        ("length", tensor.length or 0),
    )
    for key, value in entries:
        entry = made.external_data.add()
        entry.key, entry.value = key, str(value)
    return made
