"""Read layers of GPTQ, as AutoGPTQ and GPTQModel pack them.

qweight int32[K * bits / 32, N] holds consecutive inputs in a word, qzeros
int32[groups, N * bits / 32] consecutive outputs; scales [groups, N]; g_idx int32[K] is the group of
each input. The first format stores each zero point less 1; gptq_v2 stores them as they are.
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
    read_order,
    unpack_rows,
)

GPTQ_PARTS = ("qweight", "qzeros", "scales", "g_idx")
# 1 in every value of a word. It is added to the word as a whole, carry and all, as GPTQModel takes
# it off when it saves: a zero point of 0 borrows from its neighbour, and gets that back.
_ONES = {4: np.uint32(0x11111111), 8: np.uint32(0x01010101)}


def read_gptq(layer: str, parts: Parts, scheme: LayerScheme) -> PackedMatrix:
    """What is known of a layer, and how to read it.

    Raises:
        ValueError: the tensors don't fit each other or the configuration.
    """
    bits = scheme.bits
    qweight = need(parts, layer, "qweight", ("I32",), 2)
    qzeros = need(parts, layer, "qzeros", ("I32",), 2)
    scales = need(parts, layer, "scales", SCALE_DTYPES, 2)
    per_word = 32 // bits
    num_inputs, num_rows = qweight.shape[0] * per_word, qweight.shape[1]
    num_groups, group = count_groups(layer, num_inputs, scheme.group_size)
    if num_rows % per_word:
        raise ValueError(f"{layer} has {num_rows} outputs, no multiple of {per_word}")
    check_shape(layer, "qzeros", qzeros, (num_groups, num_rows // per_word))
    check_shape(layer, "scales", scales, (num_groups, num_rows))
    order, sources = None, (qweight, qzeros, scales)
    if "g_idx" in parts:
        g_idx = need(parts, layer, "g_idx", ("I32", "I64"), 1)
        check_shape(layer, "g_idx", g_idx, (num_inputs,))
        order = read_order(layer, g_idx, group)
        sources = (*sources, g_idx)
    elif scheme.act_order and num_groups > 1:
        raise ValueError(f"packed layer {layer} has no g_idx, which desc_act needs")

    def zero_points() -> NDArray[np.uint8]:
        words = read_array(qzeros)
        if scheme.layout == "gptq":
            words = (words.view(np.uint32) + _ONES[bits]).view(np.int32)
        return unpack_rows(words, bits).T

    def read() -> PackedValues:
        values = PackedValues(
            unpack_rows(read_array(qweight).T, bits),
            np.ascontiguousarray(read_floats(scales).T),
            np.ascontiguousarray(zero_points()),
        )
        return check_values(layer, values, bits)

    return PackedMatrix(
        layer,
        "gptq",
        "integer",
        (num_rows, num_inputs),
        bits,
        group,
        bool((zero_points() == 1 << (bits - 1)).all()),
        order,
        scheme.activations,
        sources,
        read,
    )
