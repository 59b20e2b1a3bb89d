"""Read layers of AWQ, as AutoAWQ packs them for its kernels.

gemm: qweight int32[K, N / 8], qzeros int32[K / group, N / 8], scales [K / group, N]; nibble i of a
word belongs to output 0, 2, 4, 6, 1, 3, 5, 7 of its eight. gemv: qweight int32[N, K / 8],
qzeros and scales by rows as well, both padded to whole words and more; in order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .matrix import PackedMatrix, PackedValues
from .scheme import LayerScheme
from .words import (
    SCALE_DTYPES,
    Parts,
    check_shape,
    check_values,
    count_groups,
    need,
    read_array,
    read_floats,
    unpack_rows,
)

AWQ_PARTS = ("qweight", "qzeros", "scales")
_PER_WORD = 8
# Where the nibble of each output lies: the inverse of 0, 2, 4, 6, 1, 3, 5, 7
_NIBBLES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_HALF = 8


def read_awq(layer: str, parts: Parts, scheme: LayerScheme) -> PackedMatrix:
    """What is known of a layer, and how to read it.

    Raises:
        ValueError: the tensors don't fit each other or the configuration.
    """
    qweight = need(parts, layer, "qweight", ("I32",), 2)
    qzeros = need(parts, layer, "qzeros", ("I32",), 2)
    scales = need(parts, layer, "scales", SCALE_DTYPES, 2)
    by_rows = scheme.layout == "awq-gemv"
    if by_rows:
        num_rows, num_inputs = qweight.shape[0], qweight.shape[1] * _PER_WORD
    else:
        num_rows, num_inputs = qweight.shape[1] * _PER_WORD, qweight.shape[0]
    num_groups, group = count_groups(layer, num_inputs, scheme.group_size)
    if by_rows:
        width = _padded_words(num_groups, group)
        check_shape(layer, "qzeros", qzeros, (num_rows, width))
        check_shape(layer, "scales", scales, (num_rows, width * _PER_WORD))
    else:
        check_shape(layer, "qzeros", qzeros, (num_groups, num_rows // _PER_WORD))
        check_shape(layer, "scales", scales, (num_groups, num_rows))

    def zero_points() -> NDArray[np.uint8]:
        words = read_array(qzeros)
        return unpack_rows(words, 4)[:, :num_groups] if by_rows else _unpack_outputs(words)

    def read() -> PackedValues:
        words, found = read_array(qweight), read_floats(scales)
        values = PackedValues(
            unpack_rows(words, 4) if by_rows else _unpack_outputs(words),
            np.ascontiguousarray(found[:, :num_groups] if by_rows else found.T),
            np.ascontiguousarray(zero_points()),
        )
        return check_values(layer, values, 4)

    symmetric = bool((zero_points() == _HALF).all())
    return PackedMatrix(
        layer,
        "awq",
        "integer",
        (num_rows, num_inputs),
        4,
        group,
        symmetric,
        None,
        scheme.activations,
        (qweight, qzeros, scales),
        read,
    )


def _unpack_outputs(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """int32[R, N / 8] -> uint8[N, R]."""
    nibbles = unpack_rows(words, 4).reshape(len(words), -1, _PER_WORD)
    return np.ascontiguousarray(nibbles[..., _NIBBLES].reshape(len(words), -1).T)


def _padded_words(num_groups: int, group_size: int) -> int:
    """Words of zero points a row: AutoAWQ's kernels read 64 bits with groups of 64, 128 of 32."""
    words = -(-num_groups // _PER_WORD)
    multiple = {64: 2, 32: 4}.get(group_size, 1)
    return -(-words // multiple) * multiple
