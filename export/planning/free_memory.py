"""Tell how much of a board's memory is free: with its desktop, without, or as the caller says."""

from __future__ import annotations

import dataclasses

from .devices import GIB, NANO_DESKTOP_FREE, NANO_FREE, Device

# What a desktop takes of any board: as much as of an Orin Nano, the one there are reports of
DESKTOP_BYTES = int((NANO_FREE - NANO_DESKTOP_FREE) * GIB)
LEAST_GIB = 1 / 16  # below it a number was meant in another unit
THIS = "this"
_DESKTOP_SOURCE = (
    "4 to 5 GiB are reported free on an Orin Nano with its desktop running (docs/jetson.md), 4 are "
    "taken; other boards: as many GiB less than without a desktop"
)


def choose_free(device: Device, *, desktop: bool | None, free_gib: float | None) -> Device:
    """The device with the memory that is free in the state it is planned for.

    Args:
        device: a board, whose own row is that of a system without a desktop, or this machine.
        desktop: whether its desktop runs; None: it does, as NVIDIA's images start it.
        free_gib: what is free by the caller's own count, instead of either.

    Raises:
        ValueError: two of them at once, an amount that can't be, or a state of this machine, which
            is not assumed but read.
    """
    if free_gib is not None:
        return _set_free(device, free_gib, desktop)
    if device.name == THIS:
        if desktop is not None:
            option = "--desktop" if desktop else "--headless"
            raise ValueError(
                f"{option} is for a board by name: of this machine the kernel says what is free "
                "now; --free-memory takes another amount"
            )
        return dataclasses.replace(device, free_is="as the kernel says now")
    without = f"{device.free_bytes / GIB:.1f} GiB"
    if desktop is False:
        return dataclasses.replace(device, free_is="assumed without a desktop (--headless)")
    sources = device.sources | {"memory with a desktop": _DESKTOP_SOURCE}
    return dataclasses.replace(
        device,
        free_bytes=device.free_bytes - DESKTOP_BYTES,
        free_is=f"assumed with its desktop running; --headless: {without}",
        desktop_bytes=DESKTOP_BYTES,
        sources=sources,
    )


def _set_free(device: Device, free_gib: float, desktop: bool | None) -> Device:
    if desktop is not None:
        option = "--desktop" if desktop else "--headless"
        raise ValueError(f"--free-memory says what is free, {option} as well: give one of them")
    most = device.memory_bytes / GIB
    if not LEAST_GIB <= free_gib <= most:
        raise ValueError(
            f"--free-memory is {free_gib:g} GiB, needed {LEAST_GIB:g} to {most:.1f}, which is what "
            f"{device.label} has"
        )
    return dataclasses.replace(
        device, free_bytes=int(free_gib * GIB), free_is="as given by --free-memory"
    )
