"""Choose the optimization profile of an engine that holds the shapes of a request."""

from __future__ import annotations

from collections.abc import Mapping

from .engine_set import EngineRecord, Profile, ProfileUse


def find_profile(
    record: EngineRecord, use: ProfileUse, shapes: Mapping[str, tuple[int, ...]]
) -> int | None:
    """Index of the first profile of a use that holds the shapes of all inputs; None: none does.

    Profiles are listed from the smallest up, and the smallest that fits has the fastest kernels.

    Args:
        record: of the engine.
        use: what the run is for.
        shapes: of at least its inputs.
    """
    for index, profile in enumerate(record.profiles):
        if profile.use == use and _holds(record, profile, shapes):
            return index
    return None


def _holds(record: EngineRecord, profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    for spec in record.inputs:
        shape = shapes[spec.name]
        if len(shape) != len(spec.shape):
            return False
        limits = profile.shapes.get(spec.name)
        if limits is None:
            sides = zip(shape, spec.shape, strict=True)
            if any(isinstance(fixed, int) and size != fixed for size, fixed in sides):
                return False
        elif not all(a <= b <= c for a, b, c in zip(limits.min, shape, limits.max, strict=True)):
            return False
    return True
