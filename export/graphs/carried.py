"""Carry the codes, scales and zero points of a checkpoint's packed layers over into a bundle.

    weights only     MatMulNBits; one scale a row is repeated over blocks
    int8, E4M3       DequantizeLinear by rows and Gemm; the input is rounded by the layer's own
                     scale, or by each token's

Nothing is rounded a second time: codes are laid out anew, scales are widened to float32. A layer
whose inputs are grouped in another order (act-order) gets its inputs gathered in that order and its
columns moved alike, which changes no product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...quant.rounding.weight_only import BLOCK_SIZES, num_blocks, pack_codes
from ..checkpoint.packed.matrix import Activations, CodeKind, PackedMatrix, PackedSource
from .weights import StoredTensor, Weight


@dataclass(frozen=True, slots=True)
class CarriedForm:
    """How a matrix lies in a bundle.

    Attributes:
        bits: of a code.
        block_size: inputs that share a scale; None: one scale a row.
        has_zero_points: its blocks have zero points of their own.
        kind: of the codes.
        activations: how the input is rounded while it runs; "float" leaves that to MatMulNBits.
    """

    bits: int
    block_size: int | None
    has_zero_points: bool
    kind: CodeKind = "integer"
    activations: Activations = "float"

    def __str__(self) -> str:
        """As the manifest says it."""
        if self.kind == "float8_e4m3fn":
            return self.kind
        if self.block_size is None:
            return f"int{self.bits} {self.activations}"
        return f"int{self.bits} block {self.block_size}"


def find_form(matrix: PackedMatrix) -> CarriedForm:
    """How a matrix is carried over.

    Raises:
        ValueError: it can't be; says what to do.
    """
    num_inputs = matrix.shape[1]
    if matrix.kind != "integer" or matrix.activations != "float":
        is_by_row = matrix.bits == 8 and matrix.group_size == num_inputs and matrix.order is None
        if not is_by_row or not matrix.symmetric or matrix.activations == "float":
            raise ValueError(
                f"{matrix.layer} is packed by {matrix.method} as {_describe(matrix)}, which is not "
                "carried over: --requantize takes its weights as floats"
            )
        return CarriedForm(8, None, False, matrix.kind, matrix.activations)
    size = matrix.group_size
    if size == num_inputs and size not in BLOCK_SIZES:  # one scale a row, repeated
        size = max(block for block in BLOCK_SIZES if block <= 128)
    if size not in BLOCK_SIZES:
        raise ValueError(
            f"{matrix.layer} has groups of {matrix.group_size} inputs, ONNX Runtime takes "
            f"{', '.join(map(str, BLOCK_SIZES))}: --requantize takes its weights as floats"
        )
    return CarriedForm(matrix.bits, size, not matrix.symmetric)


def can_join(matrices: Sequence[PackedMatrix | None]) -> bool:
    """Whether layers of one input can be one matrix: packed alike, in the inputs' own order."""
    packed = [matrix for matrix in matrices if matrix is not None]
    if len(packed) < len(matrices) or any(matrix.order is not None for matrix in packed):
        return False
    if any(matrix.activations == "static" for matrix in packed):  # each has an input scale
        return False
    forms = {(f.bits, f.block_size, f.kind, f.activations) for f in map(find_form, packed)}
    return len(forms) == 1


def _describe(matrix: PackedMatrix) -> str:
    codes = "E4M3" if matrix.kind == "float8_e4m3fn" else f"{matrix.bits} bits"
    scales = "a row" if matrix.group_size == matrix.shape[1] else f"{matrix.group_size} inputs"
    return f"{codes}, a scale for {scales}, {matrix.activations} activations"


def sort_inputs(matrix: PackedMatrix) -> NDArray[np.int64] | None:
    """The inputs in the order of their groups, int64[K]; None: they lie so already."""
    if matrix.order is None:
        return None
    return np.argsort(matrix.order, kind="stable").astype(np.int64)


def carried_weight(name: str, matrices: Sequence[PackedMatrix]) -> Weight:
    """Packed matrices as one: codes, scales and, where some need them, zero points.

    Raises:
        ValueError: as in `find_form`.
    """
    forms = [find_form(matrix) for matrix in matrices]
    form, rows = forms[0], sum(matrix.shape[0] for matrix in matrices)
    if form.block_size is None:
        return _row_weight(name, matrices, form)
    size = form.block_size
    has_zero_points = any(one.has_zero_points for one in forms)
    blocks = num_blocks(matrices[0].shape[1], size)
    stored = [
        StoredTensor(f"{name}.packed", ir.DataType.UINT8, (rows, blocks, size * form.bits // 8)),
        StoredTensor(f"{name}.scales", ir.DataType.FLOAT, (rows, blocks)),
    ]
    if has_zero_points:
        width = -(-blocks * form.bits // 8)
        stored.append(StoredTensor(f"{name}.zero_points", ir.DataType.UINT8, (rows, width)))

    def carry(source: PackedSource) -> tuple[NDArray, ...]:
        codes, scales, zero_points = _read(source.matrix, form.bits, size, blocks)
        return (codes, scales, zero_points) if has_zero_points else (codes, scales)

    return Weight(
        tuple(stored),
        tuple(PackedSource.of(matrix) for matrix in matrices),
        lambda raw, *_: (raw,),
        whole=True,
        carry=carry,
    )


def _row_weight(name: str, matrices: Sequence[PackedMatrix], form: CarriedForm) -> Weight:
    """Codes with a scale and a zero point a row, for DequantizeLinear."""
    is_float = form.kind == "float8_e4m3fn"
    suffix, dtype = ("fp8", ir.DataType.FLOAT8E4M3FN) if is_float else ("int8", ir.DataType.INT8)
    rows = sum(matrix.shape[0] for matrix in matrices)
    stored = [
        StoredTensor(f"{name}.{suffix}", dtype, (rows, matrices[0].shape[1])),
        StoredTensor(f"{name}.scales", ir.DataType.FLOAT, (rows,)),
        StoredTensor(f"{name}.zero_points", dtype, (rows,)),
    ]
    if form.activations == "static":
        layer = name.removesuffix(".weight")
        stored.append(StoredTensor(f"{layer}.input_scale", ir.DataType.FLOAT, ()))

    def carry(source: PackedSource) -> tuple[NDArray, ...]:
        values = source.matrix.read()
        codes = values.codes if is_float else (values.codes ^ np.uint8(128)).view(np.int8)
        arrays = [codes, values.scales[:, 0].copy(), np.zeros(len(codes), codes.dtype)]
        if form.activations == "static":
            arrays.append(np.array(values.input_scale, np.float32))
        return tuple(arrays)

    sources = tuple(PackedSource.of(matrix) for matrix in matrices)
    return Weight(tuple(stored), sources, lambda raw, *_: (raw,), whole=True, carry=carry)


def _read(
    matrix: PackedMatrix, bits: int, block_size: int, blocks: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    values = matrix.read()
    codes, scales = values.codes, values.scales
    assert values.zero_points is not None  # of integers
    zero_points = values.zero_points
    if (order := sort_inputs(matrix)) is not None:
        codes = np.ascontiguousarray(codes[:, order])
    if scales.shape[1] != blocks:  # one a row
        scales = np.repeat(scales[:, :1], blocks, axis=1)
        zero_points = np.repeat(zero_points[:, :1], blocks, axis=1)
    padding = blocks * block_size - codes.shape[1]
    if padding:  # inputs that are not there count as zeros whatever their codes
        codes = np.pad(codes, ((0, 0), (0, padding)))
    packed = pack_codes(codes, bits, block_size)
    if bits == 4:
        if zero_points.shape[1] % 2:
            zero_points = np.pad(zero_points, ((0, 0), (0, 1)))
        zero_points = (zero_points[:, ::2] | zero_points[:, 1::2] << 4).astype(np.uint8)
    return packed, np.ascontiguousarray(scales, np.float32), np.ascontiguousarray(zero_points)
