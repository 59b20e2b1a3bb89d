"""engines.json of a folder of engines <-> the frozen contract between the builder and the runtime.

A bundle may hold several sets, each in a folder of its own:

    BUNDLE/engines/sm87-tensorrt10.3.0-bfloat16/engines.json, vision.engine, decoder.engine, ...

A graph is one engine or a chain of them that run one after another (a decoder in k parts, its
lm_head apart); values that go from one to the next are matched by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..manifest import Dtype, TensorSpec

SCHEMA_VERSION = 1
ENGINES_FOLDER = "engines"
ENGINE_SET_NAME = "engines.json"

Builder = Literal["tensorrt", "tensorrt_rtx"]
ProfileUse = Literal["vision", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """What engines are tied to."""

    name: str  # "Orin", as CUDA says it; "" where it was built without one
    sm: str  # compute capability, "8.7"


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Of one dynamic input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes an engine is built for: an optimization profile, by its index in the engine."""

    use: ProfileUse
    shapes: dict[str, ShapeRange]  # by input


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One engine file."""

    name: str  # "vision", "decoder", "decoder.0", "lm_head"
    file: str  # beside engines.json
    bytes: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]


@dataclass(frozen=True, slots=True)
class EngineSet:
    """Everything that was built for one GPU, one TensorRT and one precision."""

    schema_version: int
    created_by: str  # "vlmedge 0.1.0"
    builder: Builder
    version: str  # of the builder, "10.3.0.30"
    gpu: Gpu
    dtype: Dtype  # compute dtype
    command: str  # that builds this set again
    settings: dict[str, str]  # of the build, as they were given
    graph_sha256: dict[str, str]  # the bundle's graph -> hash of its ONNX file
    chains: dict[str, tuple[EngineRecord, ...]]  # the bundle's graph -> its engines, in order
