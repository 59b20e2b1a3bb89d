"""Call the CUDA runtime library through ctypes, behind the `Driver` protocol.

Some twenty functions of the documented C interface, the same in CUDA 12 and 13, so that a device
needs no other Python package. TensorRT brings a copy of this library of its own or shares this one;
both use the device's one primary context, so streams and addresses are good for either.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from .engine_set import Gpu

_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3
_STREAM_NON_BLOCKING = 1
# Other threads of the process, a camera's, may go on using CUDA while this one records.
_CAPTURE_THREAD_LOCAL = 1
_ATTRIBUTE_SM_MAJOR, _ATTRIBUTE_SM_MINOR = 75, 76
# cudaDeviceProp is about 1 KiB and grows with versions; its first field is the name.
_PROPERTIES_BYTES = 16384
_NAME_BYTES = 256

_SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
# Where the packages of NVIDIA put it, below a site-packages folder.
_PACKAGES = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")
_TOOLKIT = Path("/usr/local/cuda/lib64")

_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaGetDevice": (POINTER(c_int),),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMallocHost": (POINTER(c_void_p), c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaMemcpy2DAsync": (
        *(c_void_p, c_size_t, c_void_p, c_size_t),
        *(c_size_t, c_size_t, c_int, c_void_p),
    ),
    "cudaMemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGetLastError": (),
}


class CudaDriver:
    """The process' current GPU (the first that CUDA_VISIBLE_DEVICES leaves)."""

    def __init__(self, library: str | Path | None = None) -> None:
        """Find the library and a GPU.

        Args:
            library: the CUDA runtime's file; None: the newest that the driver can serve.

        Raises:
            BackendError: there is no library, or no GPU that it can use.
        """
        candidates = list_libraries() if library is None else [str(library)]
        self._cuda = _open(candidates)
        device = c_int()
        self._check("cudaGetDevice", byref(device))
        self._gpu = self._read_gpu(device.value)

    @property
    def gpu(self) -> Gpu:
        """Name and compute capability."""
        return self._gpu

    def measure_memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = c_size_t(), c_size_t()
        self._check("cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def malloc(self, num_bytes: int) -> int:
        """Address of new device memory."""
        return self._make("cudaMalloc", c_size_t(num_bytes), of=f"{num_bytes} bytes of GPU memory")

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._check("cudaFree", c_void_p(address))

    def malloc_host(self, num_bytes: int) -> NDArray[Any]:
        """uint8[num_bytes] of pinned memory."""
        size = c_size_t(num_bytes)
        address = self._make("cudaMallocHost", size, of=f"{num_bytes} bytes of pinned memory")
        memory = (ctypes.c_uint8 * num_bytes).from_address(address)
        # Views of the array keep `memory` alive, and only they do.
        weakref.finalize(memory, self._cuda.cudaFreeHost, c_void_p(address)).atexit = False
        return np.ctypeslib.as_array(memory)

    def make_stream(self) -> int:
        """A stream that doesn't wait for the default one."""
        return self._make("cudaStreamCreateWithFlags", c_uint(_STREAM_NON_BLOCKING), of="a stream")

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._check("cudaStreamDestroy", c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        """Wait until everything on the stream is done."""
        self._check("cudaStreamSynchronize", c_void_p(stream))

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array; see `Driver`."""
        self._copy(address, _find_address(source), source.nbytes, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Fill a contiguous array; see `Driver`."""
        self._copy(_find_address(target), address, target.nbytes, _DEVICE_TO_HOST, stream)

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
        """Copy rows on the device."""
        to, origin = (c_void_p(target), target_pitch), (c_void_p(source), source_pitch)
        size = (row_bytes, num_rows)
        self._check("cudaMemcpy2DAsync", *to, *origin, *size, _DEVICE_TO_DEVICE, c_void_p(stream))

    def fill_zero(self, address: int, num_bytes: int, stream: int) -> None:
        """Set device memory to zero."""
        self._check("cudaMemsetAsync", c_void_p(address), 0, num_bytes, c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """From here on, what is put on the stream is recorded."""
        self._check("cudaStreamBeginCapture", c_void_p(stream), _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Stop recording; a graph that `launch` runs."""
        recorded = c_void_p()
        self._check("cudaStreamEndCapture", c_void_p(stream), byref(recorded))
        try:
            flags = c_ulonglong(0)
            return self._make("cudaGraphInstantiateWithFlags", recorded, flags, of="a graph")
        finally:
            self._check("cudaGraphDestroy", recorded)

    def abandon_capture(self, stream: int) -> None:
        """Stop a recording that failed: CUDA says again that it did, which is no news."""
        recorded = c_void_p()
        self._cuda.cudaStreamEndCapture(c_void_p(stream), byref(recorded))
        if recorded.value:
            self._cuda.cudaGraphDestroy(recorded)
        self._cuda.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        """Run what was recorded."""
        self._check("cudaGraphLaunch", c_void_p(graph), c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        self._check("cudaGraphExecDestroy", c_void_p(graph))

    def _copy(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> None:
        places = (c_void_p(target), c_void_p(source))
        self._check("cudaMemcpyAsync", *places, num_bytes, kind, c_void_p(stream))

    def _read_gpu(self, device: int) -> Gpu:
        numbers = []
        for attribute in (_ATTRIBUTE_SM_MAJOR, _ATTRIBUTE_SM_MINOR):
            value = c_int()
            self._check("cudaDeviceGetAttribute", byref(value), attribute, device)
            numbers.append(value.value)
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._check("cudaGetDeviceProperties", properties, device)
        name = properties.raw[:_NAME_BYTES].split(b"\0")[0].decode("utf-8", "replace")
        return Gpu(name, f"{numbers[0]}.{numbers[1]}")

    def _make(self, function: str, *args: Any, of: str) -> int:
        """Call what writes a new handle or address through its first argument."""
        made = c_void_p()
        self._check(function, byref(made), *args, of=of)
        if not made.value:
            raise BackendError(f"{function} of {of} gave nothing and no error")
        return made.value

    def _check(self, function: str, *args: Any, of: str = "") -> None:
        code = getattr(self._cuda, function)(*args)
        if code:
            self._cuda.cudaGetLastError()  # or the next call would report it again
            subject = f"{function} of {of}" if of else function
            raise BackendError(f"{subject} failed: {_describe(self._cuda, code)}")


def list_libraries() -> list[str]:
    """Names and paths of the CUDA runtime library to try, the newest first."""
    folders = [Path(entry) / package for entry in sys.path for package in _PACKAGES]
    return list(_list_candidates([*folders, _TOOLKIT]))


def _list_candidates(folders: list[Path]) -> Iterator[str]:
    for soname in _SONAMES:
        yield soname
        for folder in folders:
            if (folder / soname).is_file():
                yield str(folder / soname)


def _open(candidates: list[str]) -> ctypes.CDLL:
    """The first library that can be loaded and sees a GPU: a newer one may need a newer driver."""
    reasons: dict[str, str] = {}  # reason -> the first library that gave it
    for candidate in candidates:
        try:
            cuda = ctypes.CDLL(candidate)
            _declare(cuda)
        except (OSError, AttributeError) as error:
            if os.sep in candidate or isinstance(error, AttributeError):
                reasons.setdefault(str(error).removeprefix(f"{candidate}: "), candidate)
            continue
        count = c_int()
        code = cuda.cudaGetDeviceCount(byref(count))
        if not code and count.value:
            return cuda
        reason = _describe(cuda, code) if code else "there is no GPU"
        reasons.setdefault(reason, candidate)
    if not reasons:
        raise BackendError(
            f"the CUDA runtime library is not installed ({', '.join(_SONAMES[:2])}): it comes with "
            "JetPack and with CUDA, or pip install nvidia-cuda-runtime-cu12"
        )
    tried = "; ".join(f"{candidate}: {reason}" for reason, candidate in reasons.items())
    raise BackendError(f"no GPU can be used: {tried}")


def _declare(cuda: ctypes.CDLL) -> None:
    for name, arguments in _PROTOTYPES.items():
        function = getattr(cuda, name)
        function.argtypes, function.restype = arguments, c_int
    for name in ("cudaGetErrorName", "cudaGetErrorString"):
        function = getattr(cuda, name)
        function.argtypes, function.restype = (c_int,), c_char_p


def _describe(cuda: ctypes.CDLL, code: int) -> str:
    name, text = cuda.cudaGetErrorName(code), cuda.cudaGetErrorString(code)
    return f"{(name or b'?').decode()} ({code}), {(text or b'?').decode()}"


def _find_address(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data
