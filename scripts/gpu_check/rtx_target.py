"""A GPU that TensorRT-RTX doesn't list -> engines that may run on it all the same.

The builder refuses such a GPU, rightly: nobody says that it runs there. This is where it is found
out: an engine without a target is said to run on 8.0, 8.6, 8.9, 12.0 "and later", and engines of
one generation often run on the next minor number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

from vlmedge.export.engines import build as build_module
from vlmedge.export.engines.adapter import BuiltEngine, EngineRequest, TensorRt

OWN, ANY, CURRENT = "own", "any", "CURRENT"


def list_targets(gpu: str, known: tuple[str, ...]) -> list[str]:
    """What to try, in order: the GPU itself, no target, the builder's own word, older GPUs.

    Args:
        gpu: compute capability, "9.0".
        known: those that TensorRT-RTX builds for.
    """
    first = [OWN] if gpu in known else []
    major = _read(gpu)
    older = [each for each in known if _read(each) < major]
    names = [f"SM{each.replace('.', '')}" for each in sorted(older, key=_read, reverse=True)]
    return [*first, ANY, CURRENT, *names]


@contextmanager
def chosen_target(target: str) -> Iterator[None]:
    """Within it, `build_engines` builds for a target of `list_targets`, recorded as this GPU's."""
    if target == OWN:
        yield
        return
    made = ChosenTarget(target)
    # The builder opens TensorRT itself and has no option for what it must never do elsewhere.
    with patch.object(build_module, "open_tensorrt", lambda _wanted=None: made):
        yield


class ChosenTarget(TensorRt):
    """TensorRT-RTX that builds for what it is told, whatever the GPU is."""

    def __init__(self, target: str, module: Any = None) -> None:
        super().__init__(module or import_module("tensorrt_rtx"), "tensorrt_rtx")
        self._target = target

    def check_capability(self, wanted: str) -> str:
        """The target in place of the GPU's."""
        return self._target

    def build(self, request: EngineRequest, report: Any = None) -> BuiltEngine:
        """Build, without any target for `ANY`."""
        if self._target == ANY:
            request = dataclasses.replace(request, compute_capability=None)
        return super().build(request, report)


def _read(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)
