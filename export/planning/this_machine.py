"""Describe this machine as a device: a known board by its device tree, a GPU, or a CPU.

Nothing is measured: memory is what the kernel says is available now, rates are the board's row of
the table. Of an unknown GPU only the memory is known, and no times are estimated.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .devices import DEVICES, Device

DEVICE_TREE = Path("/proc/device-tree/model")
MEMINFO = Path("/proc/meminfo")
DRIVER_TIMEOUT_S = 10
_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total,memory.free")
# What a device tree says -> the row of the table, the first that fits
_BOARDS = (
    (re.compile(r"Orin Nano"), "orin-nano-8gb"),
    (re.compile(r"Orin NX"), "orin-nx-16gb"),
    (re.compile(r"AGX Orin"), "agx-orin-64gb"),
    (re.compile(r"Thor"), "thor"),
)
_AGX_32_BYTES = 40 << 30  # an AGX Orin with less memory is the one of 32 GB
_NOW = "what the kernel says is there and available now; nothing was measured"


@dataclass(frozen=True, slots=True)
class Found:
    """What was read of a machine."""

    model: str = ""  # of the device tree
    meminfo: str = ""
    gpu: str = ""  # first line of nvidia-smi's answer


def find_this() -> Device:
    """Read the machine at hand."""
    return recognize(Found(_read(DEVICE_TREE), _read(MEMINFO), _ask_driver()))


def recognize(found: Found) -> Device:
    """What was read -> a device.

    Raises:
        ValueError: the kernel does not say how much memory there is.
    """
    total, available = _read_meminfo(found.meminfo)
    row = _find_board(found.model, total)
    if row is not None:
        return dataclasses.replace(
            row,
            name="this",
            label=f"this machine, {row.label}",
            memory_bytes=total,
            free_bytes=available,
            sources={**row.sources, "memory": _NOW},
        )
    gpu = _read_gpu(found.gpu)
    if gpu is None:
        return Device(
            *("this", "this machine, without a GPU", total, available),
            *(0.0, 0.0, 0.0, 0.0, "", None, True, None, {"memory": _NOW}),
        )
    name, sm, memory, free = gpu
    return Device(
        *("this", f"this machine, {name}", memory, free),
        *(0.0, 0.0, 0.0, 0.0, sm, None, False, None, {"memory": f"nvidia-smi: {_NOW}"}),
    )


def _find_board(model: str, total_bytes: int) -> Device | None:
    for pattern, name in _BOARDS:
        if pattern.search(model):
            is_small = name == "agx-orin-64gb" and total_bytes < _AGX_32_BYTES
            return DEVICES["agx-orin-32gb" if is_small else name]
    return None


def _read_meminfo(text: str) -> tuple[int, int]:
    """Bytes in all and available."""
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", text, re.MULTILINE))
    if set(sizes) != {"MemTotal", "MemAvailable"}:
        raise ValueError(
            f"{MEMINFO} does not say how much memory there is: name a board with --device"
        )
    return int(sizes["MemTotal"]) << 10, int(sizes["MemAvailable"]) << 10


def _read_gpu(line: str) -> tuple[str, str, int, int] | None:
    """Name, compute capability, bytes in all and free; None: no GPU, or none that says so."""
    match = re.fullmatch(r"(.+), (\d+\.\d), (\d+), (\d+)", line.strip())
    if match is None:
        return None
    return match[1], match[2], int(match[3]) << 20, int(match[4]) << 20


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\0\n")
    except OSError:  # there is none on other systems
        return ""


def _ask_driver() -> str:
    command = [*_QUERY, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=DRIVER_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):  # no driver, or one that hangs
        return ""
    return done.stdout.partition("\n")[0] if done.returncode == 0 else ""
