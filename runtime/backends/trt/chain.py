"""Run the engines of one graph one after another, handing values on by name.

What a run gets (`Binding`) names the graph's own inputs and outputs; what only goes between two
engines gets memory here. TensorRT keeps shapes and addresses from run to run, so they are set when
they change, which in decoding is once an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import BackendError
from .driver import Driver
from .engine import ITEM_BYTES, Context, Engine
from .engine_set import EngineRecord, ProfileUse
from .memory import DeviceBlock, Scratch, align
from .profiles import find_profile


@dataclass(frozen=True, slots=True)
class Binding:
    """What a graph is run on, by the names of its inputs and outputs.

    Attributes:
        shapes: of inputs, and of outputs whose memory was made for that shape.
        addresses: on the device.
    """

    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]


@dataclass(slots=True)
class _Bound:
    """A context and what it was last told."""

    context: Context
    profile: int = -1
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    scratch: tuple[int, int] = (0, 0)


class Chain:
    """One graph's engines with a context for each use."""

    def __init__(
        self,
        driver: Driver,
        stream: int,
        scratch: Scratch,
        engines: Sequence[tuple[EngineRecord, Engine]],
    ) -> None:
        """Take over engines in their order; contexts are made when they are needed."""
        self._driver = driver
        self._stream = stream
        self._scratch = scratch
        self._engines = engines
        self._contexts: dict[tuple[ProfileUse, int], _Bound] = {}
        self._values: dict[tuple[ProfileUse, str], DeviceBlock] = {}
        self._last: dict[ProfileUse, tuple[Binding, int]] = {}
        self._versions: dict[ProfileUse, int] = {}  # how often contexts were told something

    @property
    def records(self) -> list[EngineRecord]:
        """Of its engines, in order."""
        return [record for record, _ in self._engines]

    def can_capture(self, use: ProfileUse) -> bool:
        """Whether a CUDA graph may record `enqueue` of a binding that has run."""
        contexts = (self._contexts[use, index].context for index in range(len(self._engines)))
        return all(context.can_capture(self._stream) for context in contexts)

    def get_version(self, use: ProfileUse) -> tuple[int, int]:
        """Changes with any shape and address that runs of this use depend on."""
        return self._versions.get(use, 0), self._scratch.address

    def enqueue(self, use: ProfileUse, binding: Binding) -> None:
        """Put a run on the stream.

        Raises:
            BackendError: no profile holds the shapes, or TensorRT refuses.
        """
        if not self._engines:
            raise BackendError("the engines were freed: bind the decoder again")
        if self._last.get(use) != (binding, self._scratch.address):
            self._last.pop(use, None)
            self._versions[use] = self._versions.get(use, 0) + 1
            self._bind(use, binding)
            self._last[use] = (binding, self._scratch.address)
        for index in range(len(self._engines)):
            self._contexts[use, index].context.enqueue(self._stream)

    def free(self) -> None:
        """Give back contexts, engines and memory, after what still runs."""
        self._driver.synchronize(self._stream)
        self._last.clear()
        self._versions.clear()  # a recording of these engines is of another version now
        self._contexts.clear()
        self._values.clear()
        self._engines = ()

    def _bind(self, use: ProfileUse, binding: Binding) -> None:
        shapes, addresses, scratch_bytes = dict(binding.shapes), dict(binding.addresses), 1
        for index, (record, engine) in enumerate(self._engines):
            bound = self._contexts.get((use, index))
            if bound is None:
                bound = self._contexts[use, index] = _Bound(engine.make_context())
            self._choose_profile(bound, record, use, shapes)
            scratch_bytes = max(scratch_bytes, engine.measure_scratch())
            for spec in record.inputs:
                shape = shapes[spec.name]
                if bound.shapes.get(spec.name) != shape:
                    bound.context.set_shape(spec.name, shape)
                    bound.shapes[spec.name] = shape
            for spec in record.outputs:
                shape = bound.context.get_shape(spec.name)
                if shapes.setdefault(spec.name, shape) != shape:
                    raise BackendError(
                        f"{record.file} makes {spec.name} {shape}, needed {shapes[spec.name]}: "
                        "the engine is of another graph"
                    )
                if spec.name not in addresses:
                    num_bytes = math.prod(shape) * ITEM_BYTES[spec.dtype]
                    addresses[spec.name] = self._make_room(use, spec.name, num_bytes)
        self._scratch.reserve(scratch_bytes)
        scratch = (self._scratch.address, self._scratch.num_bytes)
        for index, (record, _) in enumerate(self._engines):
            bound = self._contexts[use, index]
            for spec in (*record.inputs, *record.outputs):
                address = addresses[spec.name]
                if bound.addresses.get(spec.name) != address:
                    bound.context.set_address(spec.name, address)
                    bound.addresses[spec.name] = address
            if bound.scratch != scratch:  # even of what needs none: TensorRT wants to be told
                bound.context.set_scratch(*scratch)
                bound.scratch = scratch

    def _choose_profile(
        self,
        bound: _Bound,
        record: EngineRecord,
        use: ProfileUse,
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        missing = [spec.name for spec in record.inputs if spec.name not in shapes]
        if missing:
            raise BackendError(
                f"{record.file} needs {missing[0]}, which neither the runtime nor an engine before "
                "it makes: it is of another graph"
            )
        profile = find_profile(record, use, shapes)
        if profile is None:
            named = ", ".join(f"{spec.name} {shapes[spec.name]}" for spec in record.inputs[:4])
            raise BackendError(f"no {use} profile of {record.file} holds {named}, ...")
        if profile != bound.profile:
            bound.context.set_profile(profile, self._stream)
            bound.profile = profile
            bound.shapes.clear()  # each profile begins without any
            bound.addresses.clear()
            bound.scratch = (0, 0)

    def _make_room(self, use: ProfileUse, name: str, num_bytes: int) -> int:
        block = self._values.get((use, name))
        if block is None or block.num_bytes < num_bytes:
            if block is not None:
                self._driver.synchronize(self._stream)
                block.free()
            block = self._values[use, name] = DeviceBlock(self._driver, align(num_bytes))
        return block.address
