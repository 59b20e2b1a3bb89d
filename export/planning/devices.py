"""Boards: memory, bandwidth and matrix rates of each power mode, with where each number is from.

Rates are dense: data sheets of Jetson print them for sparse matrices, twice as high. An Orin's SM
does 2048 half-precision FLOPs a clock, twice that in INT8, so that a rate follows from SMs and
clock: 16 SMs at 1.3 GHz are 42.6 TFLOPS, half of the 85 dense INT8 TOPS that 170 sparse ones mean.
FP8 and FP4 are only on Thor, whose SM does 8192 half-precision FLOPs a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rate = Literal["half", "int8", "fp8"]

GIB = 1 << 30
ORIN_HALF, THOR_HALF = 2048, 8192  # FLOPs a clock and SM


@dataclass(frozen=True, slots=True)
class Device:
    """A machine in one power mode.

    Attributes:
        memory_bytes: what the operating system sees.
        free_bytes: of it, what is left to programs.
        bandwidth: bytes a second; 0: not known.
        half, int8, fp8: multiply-adds as two operations, a second; 0: the device has none.
        sm: compute capability; "" without a GPU.
        kind: of board, where one is known.
        is_unified: whether CPU and GPU share the memory.
        largest_allocation: bytes that the GPU is given in one piece; None: no limit is known.
        sources: quantity -> where its number is from.
        free_is: what `free_bytes` stands for, in words; "": a system without a desktop.
        desktop_bytes: what a desktop takes that `free_bytes` does without; 0: none is assumed.
    """

    name: str
    label: str
    memory_bytes: int
    free_bytes: int
    bandwidth: float
    half: float
    int8: float
    fp8: float
    sm: str
    kind: Literal["orin", "thor"] | None
    is_unified: bool
    largest_allocation: int | None
    sources: dict[str, str]
    free_is: str = ""
    desktop_bytes: int = 0

    @property
    def has_gpu(self) -> bool:
        """Whether it runs TensorRT."""
        return bool(self.sm)

    @property
    def is_timed(self) -> bool:
        """Whether enough is known of it to estimate times."""
        return self.bandwidth > 0 and self.half > 0


# How much of the memory is seen, and left by a system without a desktop.
_NANO_MEMORY = (
    "7.3 GiB seen and 6.6 GiB available on a board without a desktop "
    "(dusty-nv/jetson-containers issue 342, `free -h`)"
)
_ASSUMED_MEMORY = "assumed: 4 % kept by firmware and kernel, a system without desktop takes 1 GiB"
_NANO_PIECE = (
    "256 MiB by default, 950 MiB with cma=950M on the kernel's command line "
    "(hokwangchoi/jetson-orin-nano-benchmarks, notes of April 2026)"
)
_ORIN_DATA = "NVIDIA, Jetson {} data sheet"
_ORIN_RATE = "{} SMs x 2048 FLOPs x {} MHz; the data sheet's sparse INT8 TOPS are 4 times that"
_THOR_DATA = "NVIDIA, Jetson T5000 data sheet: 128 GB at 273 GB/s, 1035 dense FP4 TFLOPS"


def _orin(
    name: str,
    label: str,
    series: str,
    memory: tuple[float, float, str],
    bandwidth: float,
    num_sms: int,
    mhz: int,
) -> Device:
    seen, free, memory_source = memory
    is_nano = series == "Orin Nano"
    half = num_sms * ORIN_HALF * mhz * 1e6
    rate = _ORIN_RATE.format(num_sms, mhz)
    return Device(
        name=name,
        label=label,
        memory_bytes=int(seen * GIB),
        free_bytes=int(free * GIB),
        bandwidth=bandwidth * 1e9,
        half=half,
        int8=2 * half,
        fp8=0.0,
        sm="8.7",
        kind="orin",
        is_unified=True,
        largest_allocation=NANO_PIECE_BYTES if is_nano else None,
        sources={
            "memory": memory_source,
            "bandwidth": _ORIN_DATA.format(series),
            "half, int8": rate,
            **({"one piece": _NANO_PIECE} if is_nano else {}),
            "fp8": "none: Orin has no FP8 (NVIDIA, TensorRT's support matrix)",
        },
    )


# GiB that an Orin Nano leaves to programs, without and with its desktop running (the least of the
# 4 to 5 GiB that are reported)
NANO_FREE, NANO_DESKTOP_FREE = 6.6, 4.0
_NANO = (7.3, NANO_FREE, _NANO_MEMORY)
_NX = (15.3, 14.3, _ASSUMED_MEMORY)
_AGX_32, _AGX_64 = (30.6, 29.6, _ASSUMED_MEMORY), (61.4, 60.4, _ASSUMED_MEMORY)
_THOR_HALF_RATE = 20 * THOR_HALF * 1575e6
# The pool for physically contiguous memory that a Nano boots with; cma=950M is the most it takes
NANO_PIECE_BYTES = 256 << 20
_ROWS = (
    _orin("orin-nano-8gb", "Jetson Orin Nano 8GB, MAXN SUPER", "Orin Nano", _NANO, 102.4, 8, 1020),
    _orin("orin-nano-8gb-15w", "Jetson Orin Nano 8GB, 15 W", "Orin Nano", _NANO, 68.3, 8, 625),
    _orin("orin-nx-16gb", "Jetson Orin NX 16GB, 25 W", "Orin NX", _NX, 102.4, 8, 918),
    _orin("orin-nx-16gb-super", "Jetson Orin NX 16GB, MAXN SUPER", "Orin NX", _NX, 102.4, 8, 1173),
    _orin("agx-orin-32gb", "Jetson AGX Orin 32GB, MAXN", "AGX Orin", _AGX_32, 204.8, 14, 930),
    _orin("agx-orin-64gb", "Jetson AGX Orin 64GB, MAXN", "AGX Orin", _AGX_64, 204.8, 16, 1300),
    Device(
        name="thor",
        label="Jetson AGX Thor (T5000), MAXN",
        memory_bytes=int(122.8 * GIB),
        free_bytes=int(121.8 * GIB),
        bandwidth=273e9,
        half=_THOR_HALF_RATE,
        int8=2 * _THOR_HALF_RATE,
        fp8=2 * _THOR_HALF_RATE,
        sm="11.0",
        kind="thor",
        is_unified=True,
        largest_allocation=None,
        sources={
            "memory": _ASSUMED_MEMORY,
            "bandwidth": _THOR_DATA,
            "half, fp8": "20 SMs at 1575 MHz: a quarter and half of the dense FP4 rate",
            "int8": "assumed to be that of FP8; the data sheet prints none",
        },
    ),
)
DEVICES: dict[str, Device] = {device.name: device for device in _ROWS}


def find_device(name: str) -> Device:
    """A board by its name.

    Raises:
        ValueError: names those there are.
    """
    if name not in DEVICES:
        raise ValueError(f"device is {name!r}, needed one of {', '.join([*DEVICES, 'this'])}")
    return DEVICES[name]
