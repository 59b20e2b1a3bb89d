"""A GPU that is none: memory in numpy arrays, and a stream that does nothing before it must.

It is stricter than CUDA: every access must lie in one live block, new memory holds NaN, pinned
arrays are read when the stream gets to them, and what a recording may not hold is refused.
"""

import itertools

import numpy as np

from vlmedge.runtime.backends.trt.engine_set import Gpu
from vlmedge.runtime.errors import BackendError

GUARD_BYTES = 4096  # between blocks: what runs over a block's end hits none
FIRST_ADDRESS = 0x7000_0000_0000  # nothing of the host's


class FakeDriver:
    def __init__(self, gpu=None, total_bytes=1 << 32):
        self.gpu = gpu or Gpu("Fake", "8.7")
        self.total_bytes = total_bytes
        self.blocks = {}  # address -> uint8[n]
        self.pinned = []  # (first, last) addresses on the host
        self.calls = []  # names of what was called, in order
        self.streams = {}  # stream -> operations to come
        self.recording = {}  # stream -> operations so far
        self.graphs = {}  # graph -> operations
        self.refuse = set()  # names of calls that fail
        self.gives_again = False  # whether new memory may be where freed memory was, as CUDA's is
        self.freed = {}  # bytes -> an address
        self._next_address = FIRST_ADDRESS
        self._numbers = itertools.count(1)

    def measure_memory(self):
        used = sum(len(block) for block in self.blocks.values())
        return self.total_bytes - used, self.total_bytes

    def malloc(self, num_bytes):
        self._note("malloc")
        self._refuse_recording("malloc")
        if num_bytes > self.measure_memory()[0]:
            raise BackendError(f"malloc of {num_bytes} bytes failed: out of memory")
        assert num_bytes > 0
        address = self.freed.pop(num_bytes, self._next_address)
        self.blocks[address] = np.full(num_bytes, 0xFF, np.uint8)
        if address == self._next_address:
            self._next_address += -(-(num_bytes + GUARD_BYTES) // 256) * 256
        return address

    def free(self, address):
        self._note("free")
        self._refuse_recording("free")
        for stream in self.streams:
            self._drain(stream)  # as cudaFree does
        num_bytes = len(self.blocks.pop(address))
        if self.gives_again:
            self.freed[num_bytes] = address

    def malloc_host(self, num_bytes):
        self._note("malloc_host")
        array = np.full(num_bytes, 0xFF, np.uint8)
        self.pinned.append((array.ctypes.data, array.ctypes.data + num_bytes))
        return array

    def make_stream(self):
        stream = next(self._numbers)
        self.streams[stream] = []
        return stream

    def destroy_stream(self, stream):
        self._drain(stream)  # CUDA does what is on it, too
        del self.streams[stream]

    def synchronize(self, stream):
        self._note("synchronize")
        self._refuse_recording("synchronize")
        self._drain(stream)

    def copy_to_device(self, address, source, stream):
        self._note("copy_to_device")
        assert source.flags.c_contiguous
        data = source.reshape(-1).view(np.uint8)
        if not self._is_pinned(source):
            self._refuse_recording("a copy from pageable memory")
            data = data.copy()  # CUDA has staged it when the call returns

        def copy():
            self.view(address, data.nbytes)[:] = data

        self.put(stream, copy)

    def copy_to_host(self, target, address, stream):
        self._note("copy_to_host")
        assert target.flags.c_contiguous
        if not self._is_pinned(target):
            self._refuse_recording("a copy to pageable memory")

        def copy():
            target.reshape(-1).view(np.uint8)[:] = self.view(address, target.nbytes)

        self.put(stream, copy)

    def copy_rows(self, target, target_pitch, source, source_pitch, row_bytes, num_rows, stream):
        self._note("copy_rows")
        assert row_bytes <= min(target_pitch, source_pitch)

        def copy():
            for row in range(num_rows):
                read = self.view(source + row * source_pitch, row_bytes)
                self.view(target + row * target_pitch, row_bytes)[:] = read

        self.put(stream, copy)

    def fill_zero(self, address, num_bytes, stream):
        self._note("fill_zero")
        self.put(stream, lambda: self.view(address, num_bytes).fill(0))

    def begin_capture(self, stream):
        self._note("begin_capture")
        self.recording[stream] = []

    def end_capture(self, stream):
        operations = self.recording.pop(stream)
        self._note("end_capture")
        graph = next(self._numbers)
        self.graphs[graph] = operations
        return graph

    def abandon_capture(self, stream):
        self._note("abandon_capture")
        del self.recording[stream]

    def launch(self, graph, stream):
        self._note("launch")
        for operation in self.graphs[graph]:
            self.put(stream, operation)

    def destroy_graph(self, graph):
        self._note("destroy_graph")
        del self.graphs[graph]

    def put(self, stream, operation):
        """Put an operation on a stream; fake engines do so too."""
        self.recording.get(stream, self.streams[stream]).append(operation)

    def view(self, address, num_bytes):
        """The bytes of some live memory."""
        for start, block in self.blocks.items():
            if start <= address and address + num_bytes <= start + len(block):
                return block[address - start : address - start + num_bytes]
        raise AssertionError(f"{num_bytes} bytes at {address:#x} are not those of a block")

    def is_recording(self):
        return bool(self.recording)

    def _drain(self, stream):
        operations, self.streams[stream] = self.streams[stream], []
        for operation in operations:
            operation()

    def _is_pinned(self, array):
        return any(first <= array.ctypes.data < last for first, last in self.pinned)

    def _refuse_recording(self, what):
        if self.recording:
            raise BackendError(f"{what} failed: not permitted when a stream is capturing")

    def _note(self, name):
        self.calls.append(name)
        if name in self.refuse:
            raise BackendError(f"{name} failed: refused by the test")
