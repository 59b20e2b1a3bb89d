"""The protocol of an execution engine: encode pictures, make a cache, run decoder steps.

ONNX Runtime implements it in `ort/backend.py`, TensorRT in `trt/backend.py`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Manifest
from .kv_cache import KvCache

VisionGraph = Literal["vision", "vision_video"]
Residency = Literal["all", "one"]


class DecoderCall(Protocol):
    """A decoder call of fixed shape over one cache: fill the buffers, run, read the logits.

    The buffers are the engine's own inputs and are used again by every run: B sequences, S new
    tokens each, D hidden, V vocabulary.

    Attributes:
        inputs_embeds: float[B, S, D].
        position_ids: int64[3, B, S].
        seqlens_k: int32[B], tokens in the cache after the run, minus one.
        total_sequence_length: int32[], the largest of them plus one.
        logit_index: int64[B], the new token whose logits are wanted.
    """

    inputs_embeds: NDArray[np.floating]
    position_ids: NDArray[np.int64]
    seqlens_k: NDArray[np.int32]
    total_sequence_length: NDArray[np.int32]
    logit_index: NDArray[np.int64]

    def run(self) -> NDArray[np.floating]:
        """Write keys and values into the cache; logits float[B, V], valid until the next run."""
        ...


class Backend(Protocol):
    """An engine with the graphs of one bundle; one thread at a time may use it."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's, with no larger pictures and context than the engine takes."""
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """Where graphs run, the preferred one first."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """What makes it slower than it could be, a line each."""
        ...

    @property
    def load_s(self) -> float:
        """Seconds spent loading graphs so far."""
        ...

    def encode_images(
        self,
        graph: VisionGraph,
        pixel_values: NDArray[np.uint8],
        position_ids: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Run the ViT.

        Args:
            graph: "vision" for pictures, "vision_video" for frame pairs.
            pixel_values: uint8[I, N, 588 or 1176], I of equal grid.
            position_ids: int64[I, N, 2].

        Returns:
            image_embeds: float32[I, N / 4, D].
        """
        ...

    def make_cache(self, batch: int, capacity: int) -> KvCache:
        """Allocate an empty cache where the decoder runs, which is loaded for it."""
        ...

    def bind_decoder(
        self, cache: KvCache, num_tokens: int, *, row: int | None = None
    ) -> DecoderCall:
        """Prepare calls with `num_tokens` new tokens for all sequences of a cache, or for one."""
        ...

    def close(self) -> None:
        """Free all graphs; a later call loads them again."""
        ...
