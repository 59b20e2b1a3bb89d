"""Run a decoder call on engines: one upload, the engines, one download of the logits.

The cache stays where it is. A graph that writes it gets past and present at one address; one that
appends gives back the new rows, which are copied behind the tokens that are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import CacheMode, GraphSpec
from ...errors import BackendError, BundleError
from ..backend import DecoderCall
from ..cache_mask import make_mask, make_write_indices
from ..kv_cache import KvCache
from .chain import Binding, Chain
from .device_cache import PAST, PRESENT, CacheLayout, NewRows
from .driver import Driver
from .engine_set import ProfileUse
from .memory import DeviceBlock, Staging
from .step_graph import GraphPermit, StepGraph

# The mask comes last: it is the only one whose size differs from run to run.
_STAGED = ("inputs_embeds", "position_ids", "logit_index", "write_indices", "attention_mask")


@dataclass(frozen=True, slots=True)
class DecoderSetup:
    """What all calls of a loaded decoder share.

    Attributes:
        graph: the manifest's.
        min_capacity: the smallest cache that prefill's profile holds: what an empty one is
            shown as, so that its first prompt is attended alone.
        max_prefill: tokens that prefill's profile holds.
        can_decode: whether there is a profile for single tokens.
    """

    driver: Driver
    stream: int
    chain: Chain
    graph: GraphSpec
    layout: CacheLayout
    mode: CacheMode
    min_capacity: int
    max_prefill: int
    can_decode: bool
    permit: GraphPermit


class TrtDecoderCall:
    """A call of as many tokens as a profile holds; see `DecoderCall`."""

    inputs_embeds: NDArray[np.floating]
    position_ids: NDArray[np.int64]
    seqlens_k: NDArray[np.int32]
    total_sequence_length: NDArray[np.int32]
    logit_index: NDArray[np.int64]

    def __init__(
        self, setup: DecoderSetup, cache: KvCache, num_tokens: int, row: int | None
    ) -> None:
        """Make the buffers."""
        self._setup = setup
        self._cache = cache  # its memory is bound by address: keep it alive
        self._num_tokens = num_tokens
        self._first_row = row or 0
        self._batch = cache.batch if row is None else 1
        is_decode = num_tokens == 1 and setup.can_decode
        self._use: ProfileUse = "decode" if is_decode else "prefill"
        self._step = StepGraph(setup.driver, setup.stream, setup.permit) if is_decode else None
        self._staging = Staging(setup.driver, self._list_staged())
        arrays = self._staging.arrays
        self.inputs_embeds = arrays["inputs_embeds"]
        self.position_ids = arrays["position_ids"]
        self.logit_index = arrays["logit_index"]
        self.seqlens_k = np.zeros(self._batch, np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        logits = next(spec for spec in setup.graph.outputs if spec.name == "logits")
        shape, dtype = (self._batch, int(logits.shape[-1])), np.dtype(logits.dtype)
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        self._logits_block = DeviceBlock(setup.driver, num_bytes)
        self._logits = setup.driver.malloc_host(num_bytes).view(dtype).reshape(shape)
        self._bindings: dict[int, Binding] = {}  # by the capacity that the graph is shown
        self._new_rows: NewRows | None = None
        if setup.mode == "append":
            self._new_rows = NewRows(setup.driver, setup.layout, self._batch, num_tokens)

    def run(self) -> NDArray[np.floating]:
        """Logits float32[B, V], in a buffer that the next run overwrites."""
        setup, num_tokens = self._setup, self._num_tokens
        write_indices = make_write_indices(self.seqlens_k, num_tokens)
        last = int(write_indices.max()) + num_tokens
        if last > self._cache.capacity or write_indices.min() < 0:
            raise BackendError(
                f"tokens {write_indices.min()} to {last} don't fit a cache of "
                f"{self._cache.capacity}"
            )
        capacity = self._cache.capacity
        if setup.mode == "append" and not write_indices.any():
            capacity = min(setup.min_capacity, capacity)
        mask = make_mask(write_indices, num_tokens, capacity, setup.mode)
        self._staging.arrays["attention_mask"][: mask.size] = mask.reshape(-1)
        if "write_indices" in self._staging.arrays:
            self._staging.arrays["write_indices"][...] = write_indices
        if capacity not in self._bindings:
            self._bindings[capacity] = self._bind(capacity, mask.shape)
        binding = self._bindings[capacity]
        upload_bytes = self._staging.measure("attention_mask", mask.size)

        def enqueue() -> None:
            self._staging.upload(upload_bytes, setup.stream)
            setup.chain.enqueue(self._use, binding)
            setup.driver.copy_to_host(self._logits, self._logits_block.address, setup.stream)

        if self._step is None:
            enqueue()
        else:
            self._step.run(
                lambda: (capacity, setup.chain.get_version(self._use)),
                enqueue,
                lambda: setup.chain.can_capture(self._use),
            )
        if self._new_rows is not None:
            self._new_rows.append(self._cache, self._first_row, write_indices, setup.stream)
        setup.driver.synchronize(setup.stream)
        return self._logits

    def _list_staged(self) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
        specs = {spec.name: spec for spec in self._setup.graph.inputs}
        unknown = [name for name in specs if name not in _STAGED and not name.startswith(PAST)]
        if unknown or "attention_mask" not in specs:
            raise BundleError(
                f"{self._setup.graph.file} has the inputs {', '.join(specs)}: this runtime doesn't "
                "know them, export the bundle again"
            )
        sizes: dict[int | str, int] = {"batch": self._batch, "sequence": self._num_tokens}
        staged = []
        for name in _STAGED:
            if name not in specs:
                continue
            shape = [sizes.get(size, size) for size in specs[name].shape]
            if name == "attention_mask":
                shape = [self._batch * self._num_tokens * self._count_attended()]
            staged.append((name, tuple(map(int, shape)), np.dtype(specs[name].dtype)))
        return staged

    def _count_attended(self) -> int:
        """The longest row of the mask."""
        capacity = self._cache.capacity
        return capacity if self._setup.mode == "in_place" else capacity + self._num_tokens

    def _bind(self, capacity: int, mask_shape: tuple[int, ...]) -> Binding:
        """Shapes and addresses of a run that is shown `capacity` tokens of the cache."""
        layout = self._setup.layout
        shapes: dict[str, tuple[int, ...]] = {
            name: array.shape for name, array in self._staging.arrays.items()
        }
        shapes["attention_mask"] = mask_shape
        shapes["logits"] = self._logits.shape
        addresses = self._staging.addresses | {"logits": self._logits_block.address}
        offset = self._first_row * layout.measure_tensor(1, self._cache.capacity)
        specs = {spec.name: spec for spec in self._setup.graph.inputs}
        for name in layout.names:
            past = (self._batch, layout.num_kv_heads, capacity, int(specs[name].shape[3]))
            present = name.replace(PAST, PRESENT)
            shapes[name] = past
            shapes[present] = past
            addresses[name] = self._cache.buffers[name].address + offset
            addresses[present] = addresses[name]
            if self._new_rows is not None:
                shapes[present] = (*past[:2], self._num_tokens, past[3])
        if self._new_rows is not None:
            addresses |= self._new_rows.addresses
        return Binding(shapes, addresses)


class SplitDecoderCall:
    """A call of more tokens than a profile holds, as several one after another."""

    def __init__(
        self, setup: DecoderSetup, cache: KvCache, num_tokens: int, row: int | None
    ) -> None:
        """Make the buffers; those of the parts are made while it runs."""
        batch = cache.batch if row is None else 1
        embeds = next(spec for spec in setup.graph.inputs if spec.name == "inputs_embeds")
        self._setup = setup
        self._cache = cache
        self._row = row
        self.inputs_embeds: NDArray[np.floating] = np.zeros(
            (batch, num_tokens, int(embeds.shape[-1])), embeds.dtype
        )
        self.position_ids = np.zeros((3, batch, num_tokens), np.int64)
        self.seqlens_k = np.zeros(batch, np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        self.logit_index = np.zeros(batch, np.int64)

    def run(self) -> NDArray[np.floating]:
        """Logits float32[B, V]."""
        num_tokens = self.inputs_embeds.shape[1]
        write_indices = make_write_indices(self.seqlens_k, num_tokens)
        call: DecoderCall | None = None
        logits: NDArray[np.floating] | None = None
        for start in range(0, num_tokens, self._setup.max_prefill):
            stop = min(start + self._setup.max_prefill, num_tokens)
            if call is None or call.inputs_embeds.shape[1] != stop - start:
                call = TrtDecoderCall(self._setup, self._cache, stop - start, self._row)
            call.inputs_embeds[...] = self.inputs_embeds[:, start:stop]
            call.position_ids[...] = self.position_ids[:, :, start:stop]
            call.seqlens_k[...] = write_indices + stop - 1
            call.total_sequence_length[...] = call.seqlens_k.max() + 1
            call.logit_index[...] = np.clip(self.logit_index - start, 0, stop - start - 1)
            part = call.run()
            is_here = (start <= self.logit_index) & (self.logit_index < stop)
            logits = part.copy() if logits is None else logits
            logits[is_here] = part[is_here]
        assert logits is not None
        return logits
