"""Turn profiles and settings into options of trtexec that its version knows.

An option that trtexec does not know ends it, so what a script may use is a table: read in the
parser of each version, samples/common/sampleOptions.cpp of github.com/NVIDIA/TensorRT. 11.4 is not
there yet: what 11.1 knows is taken for it.

| version | tag | commit |
|---|---|---|
| 10.3 | v10.3.0 | c5b9de37 |
| 10.13 | v10.13.3 | 94e2b9ef |
| 10.16 | v10.16 | 52399f55 |
| 11.0 | v11.0 | 771d8efd |
| 11.1 | v11.1 | 82d1dca8 |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ....runtime.backends.trt.engine_set import Profile, ShapeRange
from ....runtime.bundle.manifest_checks import TENSOR_NAME
from ..settings import BuildSettings

VERSIONS = ("10.3", "10.13", "10.16", "11.0", "11.1")  # that were read, oldest first


@dataclass(frozen=True, slots=True)
class Option:
    """One option of trtexec.

    Attributes:
        value: what follows "="; "": nothing may.
        first: the oldest version that has it.
        gone: the first version that has it no more.
        note: what else is known of it.
    """

    name: str
    value: str
    first: str = VERSIONS[0]
    gone: str | None = None
    note: str = ""


OPTIONS = {
    option.name: option
    for option in (
        Option("--onnx", "file"),
        Option("--saveEngine", "file"),
        Option("--skipInference", ""),
        Option("--stronglyTyped", "", note="from 11.0 on without effect: all networks are"),
        Option("--profile", "index", note="its three shapes must follow at once"),
        Option("--minShapes", "shapes", note="one * in a name stands for anything"),
        Option("--optShapes", "shapes"),
        Option("--maxShapes", "shapes"),
        Option("--memPoolSize", "pool:size", note="a size without a unit is in MiB"),
        Option("--builderOptimizationLevel", "0 to 5"),
        Option("--timingCacheFile", "file", note="written where it is missing"),
        Option("--allowWeightStreaming", "", note="in 10.x with --stronglyTyped only"),
        Option("--noTF32", ""),
        # Not used: that a version has or lacks them is what the table is for.
        Option("--maxAuxStreams", "count"),
        Option("--refit", ""),
        Option("--stripWeights", ""),
        Option("--versionCompatible", ""),
        Option("--profilingVerbosity", "mode"),
        Option("--tempdir", "folder"),
        Option("--device", "index"),
        Option("--verbose", ""),
        Option("--fp16", "", gone="11.0"),
        Option("--bf16", "", gone="11.0"),
        Option("--fp8", "", gone="11.0"),
        Option("--int4", "", gone="11.0"),
        Option("--best", "", gone="11.0"),
        Option("--calib", "file", gone="11.0"),
        Option("--precisionConstraints", "mode", gone="11.0"),
        Option("--layerPrecisions", "layers", gone="11.0"),
        Option("--layerOutputTypes", "layers", gone="11.0"),
        Option("--monitorMemory", "", first="10.13"),
        Option("--maxTactics", "count", first="10.13"),
        Option("--tilingOptimizationLevel", "level", first="10.13"),
        Option("--decomposableAttentions", "layers", first="10.16"),
        Option("--cpuOnly", "", first="10.16", note="only with --safe and a remote GPU"),
    )
}


def list_options(version: str) -> frozenset[str]:
    """Names of what a version's trtexec knows, of the table.

    Args:
        version: "10.3", "10.13.3"; between two that were read it counts as the older, beyond the
            newest as that.

    Raises:
        ValueError: it is older than all.
    """
    number = to_number(version)
    if number < to_number(VERSIONS[0]):
        raise ValueError(f"TensorRT is {version}, needed {VERSIONS[0]} or newer")
    return frozenset(
        option.name
        for option in OPTIONS.values()
        if to_number(option.first) <= number
        and (option.gone is None or number < to_number(option.gone))
    )


def to_number(version: str) -> tuple[int, int]:
    """Major and minor of "10.13.3", for comparing.

    Raises:
        ValueError: it is no version.
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.|$)", version)
    if found is None:
        raise ValueError(f"version is {version!r}, needed numbers with points, as in 10.3")
    return int(found[1]), int(found[2])


def make_options(
    profiles: Iterable[Profile], settings: BuildSettings, version: str
) -> tuple[str, ...]:
    """Options that say what to build; the script adds those with paths.

    Args:
        profiles: of the engine, in the order of their indices.
        settings: of the build.
        version: the oldest TensorRT that the script is for.
    """
    options = ["--skipInference"]
    if to_number(version) < (11, 0):
        options.append("--stronglyTyped")
    options.append("--noTF32")  # float32 in the graph is float32, as in vlmedge build
    for index, profile in enumerate(profiles):
        options.append(f"--profile={index}")
        options += [
            f"--{side}Shapes={_join_shapes(profile.shapes, side)}" for side in ("min", "opt", "max")
        ]
    if settings.workspace_mib is not None:
        options.append(f"--memPoolSize=workspace:{settings.workspace_mib}M")
    if settings.optimization_level is not None:
        options.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if settings.weight_streaming:
        options.append("--allowWeightStreaming")
    return tuple(options)


def _join_shapes(shapes: Mapping[str, ShapeRange], side: str) -> str:
    """What one shape option says: inputs_embeds:1x512x1536,past_key_values.*.key:1x2x1x128."""
    for name in shapes:
        if not TENSOR_NAME.fullmatch(name):  # , : * ' and " mean something to trtexec
            raise ValueError(f"input {name!a:.80} has a character that trtexec reads as its own")
    return ",".join(
        f"{name}:{'x'.join(map(str, getattr(shape, side)))}"
        for name, shape in _merge_layers(shapes).items()
    )


def _merge_layers(shapes: Mapping[str, ShapeRange]) -> dict[str, ShapeRange]:
    """Inputs that differ in a layer's number only, and have one range, under one name with a *."""
    layers: dict[str, set[ShapeRange]] = {}
    for name, shape in shapes.items():
        layers.setdefault(_to_pattern(name), set()).add(shape)
    merged: dict[str, ShapeRange] = {}
    for name, shape in shapes.items():
        pattern = _to_pattern(name)
        merged[pattern if len(layers[pattern]) == 1 else name] = shape
    return merged


def _to_pattern(name: str) -> str:
    """past_key_values.3.key -> past_key_values.*.key; a name without a number as it is."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)
