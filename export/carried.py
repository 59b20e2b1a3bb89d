"""Layers that a checkpoint has packed -> MatMulNBits with the same codes, scales and zero points.

Nothing is rounded a second time: codes are laid out anew, scales are widened to float32. One scale
a row is repeated over blocks. A layer whose inputs are grouped in another order (act-order) gets
its inputs gathered in that order and its columns moved alike, which changes no product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..quant.weight_only import BLOCK_SIZES, num_blocks, pack_codes
from .checkpoint.packed import PackedMatrix, PackedSource
from .weights import StoredTensor, Weight


@dataclass(frozen=True, slots=True)
class CarriedForm:
    """What MatMulNBits is told of a matrix."""

    bits: int
    block_size: int
    has_zero_points: bool

    def __str__(self) -> str:
        """As the manifest says it."""
        return f"int{self.bits} block {self.block_size}"


def find_form(matrix: PackedMatrix) -> CarriedForm:
    """How a matrix is carried over.

    Raises:
        ValueError: it can't be; says what to do.
    """
    if matrix.kind != "integer" or matrix.activations != "float":
        what = matrix.kind if matrix.kind != "integer" else f"{matrix.activations} activations"
        raise ValueError(
            f"{matrix.layer} is packed by {matrix.method} with {what}, which is not carried over "
            "yet: --requantize takes its weights as floats"
        )
    num_inputs = matrix.shape[1]
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
    forms = {(form.bits, form.block_size) for form in map(find_form, packed)}
    return len(forms) == 1


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
    has_zero_points = any(one.has_zero_points for one in forms)
    blocks = num_blocks(matrices[0].shape[1], form.block_size)
    stored = [
        StoredTensor(
            f"{name}.packed", ir.DataType.UINT8, (rows, blocks, form.block_size * form.bits // 8)
        ),
        StoredTensor(f"{name}.scales", ir.DataType.FLOAT, (rows, blocks)),
    ]
    if has_zero_points:
        width = -(-blocks * form.bits // 8)
        stored.append(StoredTensor(f"{name}.zero_points", ir.DataType.UINT8, (rows, width)))

    def carry(source: PackedSource) -> tuple[NDArray, ...]:
        codes, scales, zero_points = _read(source.matrix, form, blocks)
        return (codes, scales, zero_points) if has_zero_points else (codes, scales)

    return Weight(
        tuple(stored),
        tuple(PackedSource.of(matrix) for matrix in matrices),
        lambda raw, dtype, start: (raw,),
        whole=True,
        carry=carry,
    )


def _read(
    matrix: PackedMatrix, form: CarriedForm, blocks: int
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
    padding = blocks * form.block_size - codes.shape[1]
    if padding:  # inputs that are not there count as zeros whatever their codes
        codes = np.pad(codes, ((0, 0), (0, padding)))
    packed = pack_codes(codes, form.bits, form.block_size)
    if form.bits == 4:
        if zero_points.shape[1] % 2:
            zero_points = np.pad(zero_points, ((0, 0), (0, 1)))
        zero_points = (zero_points[:, ::2] | zero_points[:, 1::2] << 4).astype(np.uint8)
    return packed, np.ascontiguousarray(scales, np.float32), np.ascontiguousarray(zero_points)
