"""Call a decoder graph that was written for TensorRT, in ONNX Runtime on the CPU.

The same graph a device's engine is built of, so that its numbers can be checked without the device.
Slower than the onnxruntime flavor: attention looks at the whole cache, masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import CacheMode, GraphSpec, TargetRecord
from ...errors import BackendError
from ..cache_mask import make_mask, make_write_indices
from ..kv_cache import KvCache
from .session import ort

PAST, PRESENT = "past_key_values.", "present."


class OrtTargetCall:
    """See `DecoderCall`; lengths become write indices and a mask at each run."""

    inputs_embeds: NDArray[np.floating]
    position_ids: NDArray[np.int64]
    seqlens_k: NDArray[np.int32]
    total_sequence_length: NDArray[np.int32]
    logit_index: NDArray[np.int64]

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: GraphSpec,
        target: TargetRecord,
        cache: KvCache,
        num_tokens: int,
        row: int | None,
        run_options: ort.RunOptions,
    ) -> None:
        """Make the buffers and bind those whose addresses stay."""
        self._session = session
        self._run_options = run_options
        self._mode: CacheMode = target.cache
        self._num_tokens = num_tokens
        self._capacity = cache.capacity
        self._binding = session.io_binding()
        rows = slice(None) if row is None else slice(row, row + 1)
        self._past = {name: buffer[rows] for name, buffer in cache.buffers.items()}
        batch = cache.batch if row is None else 1
        self.seqlens_k = np.zeros(batch, np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        self._new: dict[str, NDArray[Any]] = {}
        sizes: dict[int | str, int] = {
            "batch": batch,
            "sequence": num_tokens,
            "total": cache.capacity + num_tokens,
        }
        self._inputs: dict[str, NDArray[Any]] = {}
        for spec in graph.inputs:
            if spec.name in self._past:
                self._bind_input(spec.name, self._past[spec.name])
                continue
            buffer = np.zeros([sizes.get(size, size) for size in spec.shape], spec.dtype)  # type: ignore[arg-type]
            self._inputs[spec.name] = buffer
            self._bind_input(spec.name, buffer)
            if not spec.name.startswith(("attention_mask", "write_indices")):
                setattr(self, spec.name, buffer)
        for spec in graph.outputs:
            if spec.name.startswith(PRESENT) and self._mode == "in_place":
                buffer = self._past[spec.name.replace(PRESENT, PAST)]
            else:
                shape = [sizes.get(size, size) for size in spec.shape]
                buffer = np.zeros(shape, spec.dtype)  # type: ignore[arg-type]
                self._new[spec.name] = buffer
            self._binding.bind_output(
                spec.name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data
            )

    def run(self) -> NDArray[np.floating]:
        """Logits float[B, V], in a buffer that the next run overwrites."""
        starts = make_write_indices(self.seqlens_k, self._num_tokens)
        mask = make_mask(starts, self._num_tokens, self._capacity, self._mode)
        self._inputs["attention_mask"][...] = mask
        if self._mode == "in_place":
            self._inputs["write_indices"][...] = starts
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # onnxruntime has no base class of its own
            raise BackendError(f"the decoder graph failed: {error}") from error
        if self._mode == "append":
            self._write_back(starts)
        return self._new["logits"]

    def _write_back(self, starts: NDArray[np.int64]) -> None:
        """Put each row's new keys and values behind its old ones."""
        for name, new in self._new.items():
            if not name.startswith(PRESENT):
                continue
            past = self._past[name.replace(PRESENT, PAST)]
            for row, start in enumerate(starts):
                stop = min(start + self._num_tokens, self._capacity)
                past[row, :, start:stop] = new[row, :, : stop - start]

    def _bind_input(self, name: str, buffer: NDArray[Any]) -> None:
        self._binding.bind_input(
            name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data
        )
