"""Read layers of compressed-tensors.

pack-quantized: weight_packed int32[N, ceil(K * bits / 32)] of signed integers plus 2^(bits - 1),
and weight_shape [N, K]; zero points packed alike along the rows, or int8 by older versions. Naive
formats: weight int8 or float8_e4m3fn [N, K]. weight_scale is [N, groups], or [1] for a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..weights.tensor_source import TensorSource
from .matrix import PackedMatrix, PackedValues
from .scheme import TENSOR_GROUP, LayerScheme
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
    word_count,
)

COMPRESSED_PARTS = (
    "weight_packed",
    "weight_shape",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
)
# Of formats and settings that are refused; named, so that the reason is told
REFUSED_PARTS = {
    "weight_global_scale": "NVFP4 is not supported",
    "input_global_scale": "NVFP4 is not supported",
    "weight_scale_inv": "block-wise FP8 is not supported",
    "output_scale": "quantized outputs are not supported",
    "output_zero_point": "quantized outputs are not supported",
    "q_scale": "quantized attention is not supported",
    "k_scale": "a quantized KV cache is not supported",
    "v_scale": "a quantized KV cache is not supported",
    "weight_bitmask": "sparsity is not supported",
    "bitmask": "sparsity is not supported",
    "compressed": "sparsity is not supported",
}


def read_compressed_layer(layer: str, parts: Parts, scheme: LayerScheme) -> PackedMatrix:
    """What is known of a layer, and how to read it.

    Raises:
        ValueError: the tensors don't fit each other or the configuration.
    """
    weight, shape = _weight(layer, parts, scheme)
    num_groups, group = count_groups(layer, shape[1], scheme.group_size)
    scale = _scale(layer, parts, scheme, (shape[0], num_groups))
    sources = [weight, scale]
    zero = parts.get("weight_zero_point")
    zero_points = _zero_points(layer, zero, scheme, (shape[0], num_groups), scale.shape)
    order = None
    if "weight_g_idx" in parts:
        g_idx = need(parts, layer, "weight_g_idx", ("I32", "I64"), 1)
        check_shape(layer, "weight_g_idx", g_idx, (shape[1],))
        order = read_order(layer, g_idx, group)
        sources.append(g_idx)
    elif scheme.act_order and num_groups > 1:
        raise ValueError(f"packed layer {layer} has no weight_g_idx, which its actorder needs")
    input_scale = _input_scale(layer, parts, scheme)
    for name in ("weight_shape", "weight_zero_point", "input_scale", "input_zero_point"):
        if name in parts:
            sources.append(parts[name])
    whole = scheme.kind == "float8_e4m3fn"

    def read() -> PackedValues:
        words = read_array(weight)
        if weight.dtype == "I32":
            codes = unpack_rows(words, scheme.bits)[:, : shape[1]]
        elif whole:
            codes = words
        else:
            codes = _unsigned(words, scheme.bits)
        scales = np.broadcast_to(
            read_floats(scale).reshape(-1, scale.shape[-1]), (shape[0], num_groups)
        )
        values = PackedValues(
            np.ascontiguousarray(codes),
            np.ascontiguousarray(scales),
            None if whole else zero_points(),
            None if input_scale is None else float(read_floats(input_scale).reshape(-1)[0]),
        )
        return check_values(layer, values, scheme.bits)

    half = 1 << (scheme.bits - 1)
    symmetric = whole or zero is None or bool((zero_points() == half).all())
    return PackedMatrix(
        layer,
        "compressed-tensors",
        scheme.kind,
        shape,
        scheme.bits,
        group,
        symmetric,
        order,
        scheme.activations,
        tuple(sources),
        read,
    )


def _weight(layer: str, parts: Parts, scheme: LayerScheme) -> tuple[TensorSource, tuple[int, int]]:
    """The tensor with the codes, and (N, K)."""
    if scheme.layout == "naive-quantized":
        dtype = "F8_E4M3" if scheme.kind == "float8_e4m3fn" else "I8"
        weight = need(parts, layer, "weight", (dtype,), 2)
        return weight, (weight.shape[0], weight.shape[1])
    weight = need(parts, layer, "weight_packed", ("I32",), 2)
    stored = need(parts, layer, "weight_shape", ("I64", "I32"), 1)
    check_shape(layer, "weight_shape", stored, (2,))
    num_rows, num_inputs = (int(size) for size in read_array(stored))
    if num_rows < 1 or num_inputs < 1:
        raise ValueError(f"{layer}.weight_shape says {[num_rows, num_inputs]}, sizes are needed")
    check_shape(layer, "weight_packed", weight, (num_rows, word_count(num_inputs, scheme.bits)))
    return weight, (num_rows, num_inputs)


def _scale(layer: str, parts: Parts, scheme: LayerScheme, shape: tuple[int, int]) -> TensorSource:
    source = parts.get("weight_scale")
    rank = 1 if source is None else min(len(source.shape), 2)
    if scheme.group_size == TENSOR_GROUP and source is not None and source.shape == ():
        return need(parts, layer, "weight_scale", SCALE_DTYPES, 0)
    scale = need(parts, layer, "weight_scale", SCALE_DTYPES, rank)
    if scheme.group_size == TENSOR_GROUP:
        check_shape(layer, "weight_scale", scale, (1,) * rank)
    else:
        check_shape(layer, "weight_scale", scale, shape)
    return scale


def _zero_points(
    layer: str,
    zero: TensorSource | None,
    scheme: LayerScheme,
    shape: tuple[int, int],
    scale_shape: tuple[int, ...],
) -> Callable[[], NDArray[np.uint8]]:
    """How to read uint8[N, groups], 2^(bits - 1) where none are stored."""
    half = 1 << (scheme.bits - 1)
    if zero is None:
        return lambda: np.full(shape, half, np.uint8)
    if scheme.kind == "float8_e4m3fn":
        if zero.dtype not in ("F8_E4M3", *SCALE_DTYPES, "I8") or _any_bits(zero):
            raise ValueError(f"{layer}.weight_zero_point: FP8 has no zero points but 0")
        return lambda: np.zeros(shape, np.uint8)
    parts = {"weight_zero_point": zero}
    need(parts, layer, "weight_zero_point", ("I8", "I32"), len(zero.shape))
    if zero.dtype == "I8":
        check_shape(layer, "weight_zero_point", zero, scale_shape)

        def read_bytes() -> NDArray[np.uint8]:
            values = read_array(zero).reshape(-1, zero.shape[-1] if zero.shape else 1)
            found = _unsigned(values, scheme.bits)
            if scheme.bits < 8 and (found >> scheme.bits).any():
                raise ValueError(f"{layer}: a zero point needs more than {scheme.bits} bits")
            return np.ascontiguousarray(np.broadcast_to(found, shape))

        return read_bytes
    check_shape(layer, "weight_zero_point", zero, (word_count(shape[0], scheme.bits), shape[1]))

    def read_words() -> NDArray[np.uint8]:
        packed = unpack_rows(read_array(zero).T, scheme.bits)
        return np.ascontiguousarray(packed[:, : shape[0]].T)

    return read_words


def _input_scale(layer: str, parts: Parts, scheme: LayerScheme) -> TensorSource | None:
    zero = parts.get("input_zero_point")
    if zero is not None and (
        zero.dtype not in ("I8", "F8_E4M3", "I32", *SCALE_DTYPES) or _any_bits(zero)
    ):
        raise ValueError(f"{layer}.input_zero_point: asymmetric activations are not supported")
    source = parts.get("input_scale")
    if scheme.activations != "static":
        if source is not None:
            raise ValueError(f"{layer}.input_scale: its config asks for no static activations")
        return None
    if source is None:
        raise ValueError(f"packed layer {layer} has no input_scale, its activations are static")
    need(parts, layer, "input_scale", SCALE_DTYPES, len(source.shape))
    if source.shape not in ((), (1,), (1, 1)):
        raise ValueError(f"{layer}.input_scale is {list(source.shape)}, one number is needed")
    return source


def _unsigned(values: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed integers plus half their range; what was out of range is over `bits` bits then."""
    return (values.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)


def _any_bits(source: TensorSource) -> bool:
    return bool(read_array(source).any())
