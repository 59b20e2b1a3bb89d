"""Compare two stored tensors block by block, so that neither is ever whole in memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ....runtime.files.regular_file import open_regular
from .safetensors_header import ELEMENT_BYTES, TensorSource

BLOCK_ELEMENTS = 1 << 20


def are_same(left: TensorSource, right: TensorSource) -> bool:
    """Whether two tensors have one shape and the same values, whatever float type stores each.

    Raises:
        OSError: a file can't be read.
    """
    if left.shape != right.shape:
        return False
    as_bytes = left.dtype == right.dtype
    size, done = math.prod(left.shape), 0
    with open_regular(left.path) as ours, open_regular(right.path) as theirs:
        ours.seek(left.offset)
        theirs.seek(right.offset)
        while done < size:
            count = min(BLOCK_ELEMENTS, size - done)
            blocks = [
                file.read(count * ELEMENT_BYTES[tensor.dtype])
                for file, tensor in ((ours, left), (theirs, right))
            ]
            if as_bytes:
                if blocks[0] != blocks[1]:
                    return False
            else:
                values = [widen(blocks[0], left.dtype), widen(blocks[1], right.dtype)]
                if values[0] is None or values[1] is None:
                    return False
                if not np.array_equal(values[0], values[1]):
                    return False
            done += count
    return True


def widen(block: bytes, dtype: str) -> NDArray[np.float32] | None:
    """Floats of a file as float32[n], exactly; None for types that no model has."""
    if dtype == "F32":
        return np.frombuffer(block, "<f4")
    if dtype == "F16":
        return np.frombuffer(block, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(block, "<u2").astype(np.uint32) << 16).view(np.float32)
    return None
