"""Compare two stored tensors block by block, so that neither is ever whole in memory."""

from __future__ import annotations

import math

import numpy as np

from ....runtime.files.regular_file import open_regular
from .tensor_source import ELEMENT_BYTES, TensorSource, widen

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
