"""Keep the KV cache on the device: where each key and value lies, and how new rows get there.

One block holds the keys and values of all layers, one after another:

    past 0 .. T-1  [batch, num_kv_heads, capacity, head_dim]

so that the same head's rows of all layers lie one fixed pitch apart. Graphs that don't write the
cache give back the new rows alone; a copy per sequence and head puts those of all layers in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import GraphSpec
from ...errors import BackendError, BundleError
from ..kv_cache import KvCache
from .driver import ALIGNMENT_BYTES, Driver
from .engine import ITEM_BYTES
from .memory import DeviceBlock, align

PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What all keys and values of a decoder have in common.

    Attributes:
        names: of the graph's inputs, in order.
        row_bytes: of one token of one head.
    """

    names: tuple[str, ...]
    num_kv_heads: int
    row_bytes: int

    def measure_tensor(self, batch: int, num_tokens: int) -> int:
        """Bytes of one key or value."""
        return batch * self.num_kv_heads * num_tokens * self.row_bytes


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """One key or value.

    Attributes:
        block: that it is in; kept as long as this is.
        address: of it.
    """

    block: DeviceBlock
    address: int


def read_layout(graph: GraphSpec) -> CacheLayout:
    """The layout by the manifest's specs.

    Raises:
        BundleError: keys and values differ, or there are none.
    """
    pasts = [spec for spec in graph.inputs if spec.name.startswith(PAST)]
    kinds = {(spec.dtype, *spec.shape[1::2]) for spec in pasts}
    if len(kinds) != 1 or len(pasts[0].shape) != 4:
        raise BundleError(f"{graph.file} has keys and values of {len(kinds)} kinds, needed one")
    _, num_kv_heads, _, head_dim = pasts[0].shape
    names = tuple(spec.name for spec in pasts)
    row_bytes = int(head_dim) * ITEM_BYTES[pasts[0].dtype]
    return CacheLayout(names, int(num_kv_heads), row_bytes)


def make_device_cache(
    driver: Driver, stream: int, layout: CacheLayout, batch: int, capacity: int
) -> KvCache:
    """Allocate a cache of zeros: what is masked is still multiplied, by 0, and must be a number.

    Raises:
        BackendError: there is no memory for it.
    """
    tensor_bytes = layout.measure_tensor(batch, capacity)
    if layout.measure_tensor(1, capacity) % ALIGNMENT_BYTES:
        raise BackendError(
            f"a cache of {capacity} tokens has sequences of {layout.measure_tensor(1, capacity)} "
            f"bytes, needed a multiple of {ALIGNMENT_BYTES}: build with a context of whole 64s"
        )
    num_bytes = tensor_bytes * len(layout.names)
    try:
        block = DeviceBlock(driver, num_bytes)
    except BackendError as error:
        free, total = driver.measure_memory()
        raise BackendError(
            f"no memory for a cache of {batch} x {capacity} tokens, {num_bytes >> 20} MiB: "
            f"{free >> 20} of {total >> 20} MiB are free: {error}"
        ) from error
    driver.fill_zero(block.address, num_bytes, stream)
    buffers = {
        name: CacheTensor(block, block.address + index * tensor_bytes)
        for index, name in enumerate(layout.names)
    }
    return KvCache(batch, capacity, buffers, num_bytes)


class NewRows:
    """Where a graph that appends leaves its new rows, T times [B, num_kv_heads, S, head_dim]."""

    def __init__(self, driver: Driver, layout: CacheLayout, batch: int, num_tokens: int) -> None:
        """Make room for one call."""
        self._driver = driver
        self._layout = layout
        self._num_tokens = num_tokens
        # Each begins where TensorRT may write, which small ones don't fill.
        self._pitch = align(layout.measure_tensor(batch, num_tokens))
        self._block = DeviceBlock(driver, self._pitch * len(layout.names))
        self.addresses = {
            name.replace(PAST, PRESENT): self._block.address + index * self._pitch
            for index, name in enumerate(layout.names)
        }

    def append(
        self, cache: KvCache, first_row: int, write_indices: NDArray[np.int64], stream: int
    ) -> None:
        """Copy the rows of all layers into the cache.

        Args:
            cache: whose.
            first_row: its sequence that the first of this call is.
            write_indices: int64[B], the token each sequence's first new row becomes.
            stream: behind the run that makes the rows.
        """
        layout = self._layout
        start = cache.buffers[layout.names[0]].address
        target_pitch = layout.measure_tensor(cache.batch, cache.capacity)
        copy_bytes = self._num_tokens * layout.row_bytes
        for row, write_index in enumerate(write_indices.tolist()):
            for head in range(layout.num_kv_heads):
                place = ((first_row + row) * layout.num_kv_heads + head) * cache.capacity
                origin = (row * layout.num_kv_heads + head) * copy_bytes
                self._driver.copy_rows(
                    start + (place + write_index) * layout.row_bytes,
                    target_pitch,
                    self._block.address + origin,
                    self._pitch,
                    copy_bytes,
                    len(layout.names),
                    stream,
                )
