"""Device memory with an owner: blocks, the one of scratch, inputs that are copied together."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .driver import ALIGNMENT_BYTES, Driver


def align(num_bytes: int) -> int:
    """The next multiple of what an address must be one of."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class DeviceBlock:
    """Device memory that is given back when nothing refers to it, or earlier by `free`."""

    def __init__(self, driver: Driver, num_bytes: int) -> None:
        """Allocate."""
        self.num_bytes = num_bytes
        self.address = driver.malloc(num_bytes)
        self.free = weakref.finalize(self, driver.free, self.address)
        self.free.atexit = False  # by then the driver may be gone, and the memory is


class Scratch:
    """Memory for what engines compute in between: one block, as large as the neediest one's.

    Engines run one after another on one stream, so that all may use the same.
    """

    def __init__(self, driver: Driver, stream: int) -> None:
        """Nothing is allocated yet."""
        self._driver = driver
        self._stream = stream
        self._block: DeviceBlock | None = None

    @property
    def address(self) -> int:
        """Changes when it grows; 0 while there is none."""
        return self._block.address if self._block else 0

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self._block.num_bytes if self._block else 0

    def reserve(self, num_bytes: int) -> None:
        """Grow to a size, after what still runs; the content is lost."""
        if num_bytes > self.num_bytes:
            self.free()
            self._block = DeviceBlock(self._driver, align(num_bytes))

    def free(self) -> None:
        """Give it back, after what still runs."""
        if self._block:
            self._driver.synchronize(self._stream)
            self._block.free()
            self._block = None


class Staging:
    """Arrays to fill on the host, side by side in pinned memory, and their place on the device.

    Attributes:
        arrays: by name, views to write into.
        addresses: by name, on the device.
    """

    def __init__(
        self, driver: Driver, specs: Sequence[tuple[str, tuple[int, ...], np.dtype[Any]]]
    ) -> None:
        """Lay out arrays, each given as name, shape and type; all are zero."""
        self._driver = driver
        spans: dict[str, slice] = {}
        offset = 0
        for name, shape, dtype in specs:
            spans[name] = slice(offset, offset + math.prod(shape) * dtype.itemsize)
            offset = align(spans[name].stop)
        self._host = driver.malloc_host(max(offset, 1))
        self._host[...] = 0
        self._block = DeviceBlock(driver, max(offset, 1))
        self.arrays: dict[str, NDArray[Any]] = {}
        self.addresses: dict[str, int] = {}
        for name, shape, dtype in specs:
            self.arrays[name] = self._host[spans[name]].view(dtype).reshape(shape)
            self.addresses[name] = self._block.address + spans[name].start

    def upload(self, num_bytes: int, stream: int) -> None:
        """Copy the first bytes of the arrays to the device, in one go."""
        self._driver.copy_to_device(self._block.address, self._host[:num_bytes], stream)

    def measure(self, name: str, num_bytes: int) -> int:
        """Bytes from the first array to the end of some bytes of one."""
        return self.addresses[name] - self._block.address + num_bytes
