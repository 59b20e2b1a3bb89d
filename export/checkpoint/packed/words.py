"""Read the tensors of packed layers: integers in 32-bit words, scales, orders of inputs.

A word is little-endian and holds its first value in its lowest bits, in every format read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.files.regular_file import open_regular
from ..weights.tensor_source import TensorSource
from .matrix import PackedValues

Parts = Mapping[str, TensorSource]  # of one layer, by the last part of their names
_DTYPES = {
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
}
SCALE_DTYPES = ("F16", "BF16", "F32")


def read_array(source: TensorSource) -> NDArray[Any]:
    """A tensor as it lies, any[...] in its stored shape; bfloat16 as its bits, uint16[...].

    Raises:
        ValueError: the file is not what its header said any more.
    """
    try:
        with open_regular(source.path) as file:
            file.seek(source.offset)
            data = file.read(source.nbytes)
    except OSError as error:
        raise ValueError(f"{source.path} can't be read: {error.strerror or error}") from error
    if len(data) != source.nbytes:
        raise ValueError(f"{source.path}: tensor {source.name!r} is cut off: the file has changed")
    return np.frombuffer(data, _DTYPES[source.dtype]).reshape(source.shape)


def read_floats(source: TensorSource) -> NDArray[np.float32]:
    """A tensor of floats as float32[...], exactly."""
    values = read_array(source)
    if source.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def unpack_rows(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """int32[R, C] -> uint8[R, C * 32 / bits], of 4 or 8 bits."""
    octets = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return octets
    pairs = np.empty((*octets.shape, 2), np.uint8)
    np.bitwise_and(octets, 15, out=pairs[..., 0])
    np.right_shift(octets, 4, out=pairs[..., 1])
    return pairs.reshape(octets.shape[0], -1)


def word_count(values: int, bits: int) -> int:
    """Words that hold so many values."""
    return -(-values * bits // 32)


def need(parts: Parts, layer: str, name: str, dtypes: tuple[str, ...], rank: int) -> TensorSource:
    """The tensor of a layer, of the right kind.

    Raises:
        ValueError: it is missing, of another dtype or rank, or has no elements.
    """
    source = parts.get(name)
    if source is None:
        raise ValueError(f"packed layer {layer} has no {name}")
    if source.dtype not in dtypes:
        raise ValueError(f"{layer}.{name} is {source.dtype}, needed {' or '.join(dtypes)}")
    if len(source.shape) != rank or 0 in source.shape:
        raise ValueError(f"{layer}.{name} is {list(source.shape)}, needed {rank} sizes over 0")
    return source


def check_shape(layer: str, name: str, source: TensorSource, shape: tuple[int, ...]) -> None:
    """Refuse a tensor whose shape doesn't follow from its neighbours and the configuration."""
    if source.shape != shape:
        raise ValueError(
            f"{layer}.{name} is {list(source.shape)}, needed {list(shape)} by the other tensors of "
            "the layer and the quantization_config's bits and group_size"
        )


def count_groups(layer: str, num_inputs: int, group_size: int) -> tuple[int, int]:
    """How many groups a row has, and how many inputs each; a size of 0 or less is one group."""
    size = group_size if group_size > 0 else num_inputs
    if num_inputs % size:
        raise ValueError(f"{layer}: its {num_inputs} inputs are no multiple of group_size {size}")
    return num_inputs // size, size


def read_order(layer: str, source: TensorSource, group_size: int) -> NDArray[np.int32] | None:
    """The group of each input, int32[K]; None where it is the input's place over the group size.

    Args:
        layer: its name, for messages.
        source: int32[K] or int64[K].
        group_size: inputs of a group, a divisor of K.

    Raises:
        ValueError: a group that doesn't exist, or groups of different sizes.
    """
    order = read_array(source)
    num_groups = len(order) // group_size
    if order.min() < 0 or order.max() >= num_groups:
        raise ValueError(
            f"{layer}.{source.name.rpartition('.')[2]} has groups {order.min()} to {order.max()}, "
            f"needed 0 to {num_groups - 1}"
        )
    if (counts := np.bincount(order, minlength=num_groups)).min() != group_size:
        raise ValueError(
            f"{layer}: group {counts.argmin()} has {counts.min()} inputs, each needs {group_size}"
        )
    if np.array_equal(order, np.arange(len(order)) // group_size):
        return None
    return order.astype(np.int32)


def check_values(layer: str, values: PackedValues, bits: int) -> PackedValues:
    """The values, after scales and codes that no quantizer writes have been refused."""
    scales = values.scales
    if not (np.isfinite(scales) & (scales > 0)).all():
        wrong = scales[~(np.isfinite(scales) & (scales > 0))].flat[0]
        raise ValueError(f"{layer}: a scale is {wrong}, finite positive ones are needed")
    if values.zero_points is None:
        if ((values.codes & 0x7F) == 0x7F).any():
            raise ValueError(f"{layer}: a weight is NaN")
    elif bits < 8 and (values.codes >> bits).any():
        raise ValueError(f"{layer}: a code needs more than the {bits} bits of the config")
    given = values.input_scale
    if given is not None and not (np.isfinite(given) and given > 0):
        raise ValueError(f"{layer}: input_scale is {given}, a finite positive one is needed")
    return values
