"""Open an engine file after its hash is checked, and say what is needed of TensorRT.

`tensorrt_engine.py` implements the protocols, tests bring their own. Nothing here waits: an engine
is put on a stream, as copies are.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ...bundle.manifest import Dtype
from ...errors import BackendError, BundleError
from ...files.regular_file import open_regular
from .engine_set import EngineRecord

ITEM_BYTES: dict[Dtype, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "uint8": 1,
    "int8": 1,
    "int32": 4,
    "int64": 8,
    "bool": 1,
    "float8_e4m3fn": 1,
}
_HASH_BYTES = 1 << 20  # read at a time


class Context(Protocol):
    """One way of running an engine: an optimization profile, shapes and addresses.

    All of it raises BackendError with TensorRT's own words where it refuses.
    """

    def set_profile(self, profile: int, stream: int) -> None:
        """Choose the optimization profile; shapes must be set after it."""
        ...

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Of an input; the profile must hold it."""
        ...

    def get_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, when all inputs have theirs."""
        ...

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output is on the device."""
        ...

    def set_scratch(self, address: int, num_bytes: int) -> None:
        """Memory for what is between inputs and outputs; others may use it between two runs."""
        ...

    def can_capture(self, stream: int) -> bool:
        """Whether a CUDA graph may record `enqueue`, after it has run once as it is."""
        ...

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream."""
        ...


class Engine(Protocol):
    """A deserialized engine; its memory is given back when nothing refers to it."""

    @property
    def inputs(self) -> Mapping[str, Dtype]:
        """Names and types."""
        ...

    @property
    def outputs(self) -> Mapping[str, Dtype]:
        """Names and types."""
        ...

    @property
    def num_profiles(self) -> int:
        """Optimization profiles it was built for."""
        ...

    def measure_scratch(self) -> int:
        """Bytes of scratch memory that a context needs, whatever its profile."""
        ...

    def make_context(self) -> Context:
        """A context without memory of its own; two may not be in the same profile."""
        ...


class EngineLoader(Protocol):
    """Deserializes engines."""

    def __call__(self, data: mmap.mmap, where: str) -> Engine:
        """Load an engine.

        Args:
            data: the file, mapped; not needed afterwards.
            where: what messages call it.
        """
        ...


def open_engine(folder: Path, record: EngineRecord, load: EngineLoader, command: str) -> Engine:
    """Check an engine file against its record, then deserialize it.

    The bytes that are hashed are those that are loaded: both read one mapping, which takes no
    memory that the system couldn't have back.

    Args:
        folder: of the engine set.
        record: of the engine.
        load: the deserializer, not called for a file that is another than the recorded one.
        command: builds the engines again.

    Raises:
        BundleError: the file is missing, or another than the recorded one.
        BackendError: TensorRT refuses it, or it is another than its record says.
    """
    path = folder / record.file
    try:
        with (
            open_regular(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if (sha256 := _hash(data)) != record.sha256:
                raise BundleError(
                    f"{path} has SHA-256 {sha256[:16]}..., its record says "
                    f"{record.sha256[:16]}...: it is not loaded, build it again with `{command}`"
                )
            engine = load(data, str(path))
    except BundleError:
        raise
    except (OSError, ValueError) as error:  # ValueError: of an empty file
        raise BundleError(f"{path} can't be read: {error}") from error
    _check(engine, record, path, command)
    return engine


def _hash(data: mmap.mmap) -> str:
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for start in range(0, len(view), _HASH_BYTES):
            digest.update(view[start : start + _HASH_BYTES])
    return digest.hexdigest()


def _check(engine: Engine, record: EngineRecord, path: Path, command: str) -> None:
    """The engine must have the inputs and outputs that were written down when it was built."""
    got = {**engine.inputs, **engine.outputs}
    needed = {tensor.name: tensor.dtype for tensor in (*record.inputs, *record.outputs)}
    if got != needed:
        name = min(set(got.items()) ^ set(needed.items()))[0]
        raise BackendError(
            f"{path} has {name} as {got.get(name)}, its record as {needed.get(name)}: "
            f"build it again with `{command}`"
        )
    if engine.num_profiles != len(record.profiles):
        raise BackendError(
            f"{path} has {engine.num_profiles} optimization profiles, its record "
            f"{len(record.profiles)}: build it again with `{command}`"
        )
