"""Estimate seconds from work and a device: each piece by its slower side, computing or moving.

    seconds = sum over pieces of max(FLOPs / (matrix * rate), bytes / (memory * bandwidth))
              + launch * kernels

The three factors are the same for all devices and models. They were fitted to published times of
other runtimes on Jetson boards (scripts/check_plan.py, docs/planning.md), so that what is estimated
is a well-made engine; ours have not been timed on any of these boards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .devices import Device
from .work import Rate, Work


@dataclass(frozen=True, slots=True)
class Factors:
    """What real kernels reach.

    Attributes:
        memory: share of the bandwidth.
        matrix: share of the matrix rate.
        launch_us: microseconds that a kernel costs beyond both.
    """

    memory: float
    matrix: float
    launch_us: float


FITTED = Factors(memory=0.81, matrix=0.60, launch_us=4.0)


def find_rate(device: Device, rate: Rate) -> float:
    """Operations a second of a kind; single precision is TF32, at half of the half rate.

    Raises:
        ValueError: the device can't compute it.
    """
    rates = {
        "single": device.half / 2,
        "half": device.half,
        "int8": device.int8,
        "fp8": device.fp8,
    }
    if not rates[rate]:
        raise ValueError(f"{device.label} has no rate of {rate}")
    return rates[rate]


def estimate_seconds(work: Iterable[Work], device: Device, factors: Factors = FITTED) -> float:
    """How long the work takes.

    Raises:
        ValueError: too little is known of the device.
    """
    if not device.is_timed:
        raise ValueError(f"bandwidth and rates of {device.label} are not known")
    seconds = 0.0
    for piece in work:
        computing = piece.flops / (factors.matrix * find_rate(device, piece.rate))
        moved = piece.weight_bytes + piece.moved_bytes
        moving = moved / (factors.memory * device.bandwidth)
        seconds += max(computing, moving) + piece.launches * factors.launch_us * 1e-6
    return seconds
