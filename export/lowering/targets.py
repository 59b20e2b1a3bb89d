"""The table of what each TensorRT may be given; no branches elsewhere.

| target | TensorRT | comes with | evidence for the row |
|---|---|---|---|
| jetpack-6.2 | 10.3 | Orin | onnx-tensorrt's parser of 10.1 read; its documents; never run |
| jetpack-7.0 | 10.13 | Thor | the same, and the changelogs up to 10.13; never run |
| jetpack-7.2 | 10.16 | Orin and Thor | parser documents of 10.15; TensorRT-RTX shares the parser |
| tensorrt-11 | 11.0 | any GPU | the same |
| tensorrt-rtx | RTX 1.5 | GeForce, workstations | engines built by 1.7.1, on a CPU |

All are strongly typed, symmetric (zero points are 0) and without precision flags or calibrators.
TensorRT's documents name blocks of weights for INT4 only, so INT8 blocks become one scale a row
where no engine with them was ever built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...runtime.bundle.manifest import CacheMode

Device = Literal["orin", "thor"]

# Opset of blocks and of INT4, which parsers read under an older stamp's rules: none checks it.
BLOCKS_OPSET = 21


@dataclass(frozen=True, slots=True)
class Target:
    """One row.

    Attributes:
        tensorrt: the oldest version that reads the graphs, "10.3".
        opset: of the graphs.
        fused: Attention, RotaryEmbedding, RMSNormalization and TensorScatter as nodes, or written
            out as MatMul, Softmax, Mul, ...
        int4_blocks: weights that may share a scale, in one direction only.
        int8_blocks: the same for INT8 weights; none: one scale a row.
        devices: boards it comes with; none: any GPU.
    """

    name: str
    tensorrt: str
    opset: int
    fused: bool
    int4_blocks: tuple[int, ...]
    int8_blocks: tuple[int, ...]
    devices: tuple[Device, ...]

    @property
    def cache(self) -> CacheMode:
        """TensorScatter writes in place; without it a graph gives back what is to be written."""
        return "in_place" if self.fused else "append"


TARGETS = {
    target.name: target
    for target in (
        Target("jetpack-6.2", "10.3", 20, False, (64, 128), (), ("orin",)),
        Target("jetpack-7.0", "10.13", 20, False, (64, 128), (), ("thor",)),
        Target("jetpack-7.2", "10.16", 24, True, (64, 128), (), ("orin", "thor")),
        Target("tensorrt-11", "11.0", 24, True, (64, 128), (), ()),
        Target("tensorrt-rtx", "RTX 1.5", 24, True, (16, 32, 64, 128), (16, 32, 64, 128), ()),
    )
}

# Precisions of a manifest, by their first word, that a device has no arithmetic for.
NO_ARITHMETIC: dict[Device, tuple[str, ...]] = {"orin": ("float8_e4m3fn",), "thor": ()}


def find_target(name: str) -> Target:
    """A row by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in TARGETS:
        raise ValueError(f"target is {name!r}, needed one of {', '.join(TARGETS)}")
    return TARGETS[name]


def check_device(precisions: list[str], target: Target, device: Device | None) -> None:
    """Refuse what the device can't compute, before anything is written.

    Args:
        precisions: of all layers, as manifests name them.
        target: a row; where it comes with one device, that is the device.
        device: None: not said.

    Raises:
        ValueError: says what to use instead.
    """
    if device is not None and target.devices and device not in target.devices:
        boards = " and ".join(target.devices)
        raise ValueError(f"target {target.name} comes with {boards}, not with {device}")
    if device is None and len(target.devices) == 1:
        (device,) = target.devices
    missing = NO_ARITHMETIC[device] if device else ()
    refused = [precision for precision in precisions if precision.split()[0] in missing]
    if refused:
        raise ValueError(
            f"{len(refused)} layers are {refused[0]}, which {device} has no arithmetic for: "
            "quantize with --recipe orin (INT8 ViT, INT4 decoder)"
        )
