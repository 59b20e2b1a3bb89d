"""Compute what graphs for TensorRT ask of the host: write indices and the attention mask.

ONNX Runtime's attention takes lengths; a graph of flavor "tensorrt" takes where each row's new
tokens go and which tokens each of them may look at. In a batch whose prompts are padded on the
right, padding looks at whatever it likes: nobody reads what comes of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import CacheMode


def make_write_indices(seqlens_k: NDArray[np.int32], num_tokens: int) -> NDArray[np.int64]:
    """Tokens in each row's cache before a call.

    Args:
        seqlens_k: int32[B], tokens after the call, minus one; padding not counted.
        num_tokens: S, of the call; a row with fewer is padded, and has nothing in its cache.

    Returns:
        int64[B].
    """
    return np.maximum(seqlens_k.astype(np.int64) + 1 - num_tokens, 0)


def make_mask(
    write_indices: NDArray[np.int64], num_tokens: int, capacity: int, mode: CacheMode
) -> NDArray[np.bool_]:
    """Which tokens each new token may look at: those before it, and itself.

    Args:
        write_indices: int64[B].
        num_tokens: S.
        capacity: M, of the cache.
        mode: "in_place": new tokens are in the cache; "append": behind it.

    Returns:
        bool[B, 1, S, M] in place, bool[B, 1, S, M + S] appending; True: look.
    """
    new = np.arange(num_tokens)
    old = write_indices[:, None, None]
    if mode == "in_place":
        return (np.arange(capacity) <= old + new[:, None])[:, None]
    shape = (len(write_indices), num_tokens, capacity)
    cached = np.broadcast_to(np.arange(capacity) < old, shape)
    causal = np.broadcast_to(new <= new[:, None], (len(write_indices), num_tokens, num_tokens))
    return np.concatenate((cached, causal), axis=2)[:, None]
