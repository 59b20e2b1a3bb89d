"""The protocol of CUDA that the engines need; `cuda_driver.py` and the tests implement it.

Addresses, streams and graphs are integers, as CUDA's handles are. Everything on a stream happens in
order and later than the call returns; `synchronize` waits for it.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from .engine_set import Gpu

# What TensorRT asks of every address it gets; cudaMalloc gives at least that.
ALIGNMENT_BYTES = 256


class Driver(Protocol):
    """One GPU; one thread at a time may use it.

    All of it raises BackendError with CUDA's own words where a call fails.
    """

    @property
    def gpu(self) -> Gpu:
        """Name and compute capability."""
        ...

    def measure_memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        ...

    def malloc(self, num_bytes: int) -> int:
        """Address of new device memory, aligned to ALIGNMENT_BYTES; its content is undefined."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back, after all that uses it."""
        ...

    def malloc_host(self, num_bytes: int) -> NDArray[Any]:
        """uint8[num_bytes] of pinned memory, given back with the last view of it.

        Copies from and to it run beside the host.
        """
        ...

    def make_stream(self) -> int:
        """A stream that doesn't wait for the default one."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until everything on the stream is done."""
        ...

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the device.

        Args:
            address: where it goes.
            source: any[...]; a pinned one must stay as it is until the stream has copied it.
            stream: which does the copy.
        """
        ...

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Fill a contiguous array from the device; it is valid after `synchronize`.

        Args:
            target: any[...].
            address: where its bytes are.
            stream: which does the copy.
        """
        ...

    def copy_rows(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        row_bytes: int,
        num_rows: int,
        stream: int,
    ) -> None:
        """Copy rows on the device, whose starts lie a pitch in bytes apart."""
        ...

    def fill_zero(self, address: int, num_bytes: int, stream: int) -> None:
        """Set device memory to zero."""
        ...

    def begin_capture(self, stream: int) -> None:
        """From here on, what is put on the stream is recorded and not run."""
        ...

    def end_capture(self, stream: int) -> int:
        """Stop recording; a graph that `launch` runs."""
        ...

    def abandon_capture(self, stream: int) -> None:
        """Stop a recording that failed; the stream can be used again."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Run what was recorded, with the addresses of then."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back, after its last run."""
        ...
