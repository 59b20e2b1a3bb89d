"""Read and write engines.json, the contract between the engine builder and the runtime.

A bundle may hold several sets, each in a folder of its own:

    BUNDLE/engines/sm87-tensorrt10.3.0-bfloat16/engines.json, vision.engine, decoder.engine, ...

A graph is one engine or a chain of them that run one after another (a decoder in k parts, its
lm_head apart); values that go from one to the next are matched by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...bundle.manifest import Dtype, Manifest, TensorSpec
from ...bundle.manifest_checks import TENSOR_NAME, check_tensors
from ...errors import BundleError
from ...files.plain_text import check_plain
from ...files.regular_file import open_regular
from ...files.strict import parse_object, read_strict

SCHEMA_VERSION = 1
ENGINES_FOLDER = "engines"
ENGINE_SET_NAME = "engines.json"
MAX_ENGINE_SET_BYTES = 4 << 20  # one of a decoder in 80 engines is under 1 MiB

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SM = re.compile(r"[1-9][0-9]{0,2}\.[0-9]")

# What the command begins with that builds a set again, where a script built it on the device.
_OF_SCRIPT = "bash "

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
    """Everything that was built for one GPU, one TensorRT and one precision.

    Attributes:
        weights_sha256: what `record_weights` says of the bundle: graphs of equal shapes and other
            weights are equal files. Empty: not compared.
    """

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
    weights_sha256: dict[str, str] = field(default_factory=dict)


def record_weights(manifest: Manifest) -> dict[str, str]:
    """File -> hash of all that the graphs of a bundle read their weights from."""
    apart = {graph.file for graph in manifest.graphs.values()}
    apart |= {manifest.tokenizer_file, manifest.chat_template_file}
    return {name: record.sha256 for name, record in manifest.files.items() if name not in apart}


def to_json(engine_set: EngineSet) -> str:
    """An engine set as indented JSON with a final newline."""
    return json.dumps(dataclasses.asdict(engine_set), indent=1, ensure_ascii=False) + "\n"


def read_engine_set(folder: Path) -> EngineSet:
    """Read and check FOLDER/engines.json and that every engine it lists is there in full size.

    Hashes are computed when an engine is loaded.

    Raises:
        BundleError: no such file, a damaged one, or a missing or truncated engine.
    """
    path = folder / ENGINE_SET_NAME
    try:
        with open_regular(path) as file:
            data = file.read(MAX_ENGINE_SET_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{folder} holds no engines: no readable {ENGINE_SET_NAME} ({error.strerror})"
        ) from error
    if len(data) > MAX_ENGINE_SET_BYTES:
        raise BundleError(f"{path} is over {MAX_ENGINE_SET_BYTES} bytes: this is none of ours")
    try:
        engine_set = parse_engine_set(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8: {error}") from error
    for engine in list_engines(engine_set):
        file_path = folder / engine.file
        if not file_path.is_file():
            raise BundleError(f"{folder} lacks the engine {engine.file}: {_rebuild(engine_set)}")
        size = file_path.stat().st_size
        if size != engine.bytes:
            raise BundleError(
                f"{file_path} has {size} bytes, {ENGINE_SET_NAME} says {engine.bytes}: "
                f"{_rebuild(engine_set)}"
            )
    return engine_set


def parse_engine_set(text: str, where: str = ENGINE_SET_NAME) -> EngineSet:
    """Read an engine set's JSON, strictly: unknown, missing and wrongly typed keys are errors.

    Raises:
        BundleError: names the offending key, what was got and what was needed.
    """
    raw = parse_object(text, where, BundleError)
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version!r:.80}, this runtime reads {SCHEMA_VERSION}: "
            "build the engines again with this version of vlmedge"
        )
    check_plain(raw, where, BundleError)
    engine_set = read_strict(raw, EngineSet, where, BundleError)
    _check(engine_set, where)
    return engine_set


def list_engines(engine_set: EngineSet) -> list[EngineRecord]:
    """All engines of all graphs."""
    return [engine for chain in engine_set.chains.values() for engine in chain]


def is_of_script(engine_set: EngineSet) -> bool:
    """Whether a script built it, that is for one bundle and has its options in itself."""
    return engine_set.command.startswith(_OF_SCRIPT)


def advise_rebuild(engine_set: EngineSet, option: str = "") -> str:
    """How to build a set anew, the end of a message.

    Args:
        engine_set: that is there.
        option: what it lacks, "--max-batch 4"; empty: it is of another bundle.
    """
    added = f" {option}" if option else ""
    if is_of_script(engine_set):
        script = engine_set.command.removeprefix(_OF_SCRIPT)
        command = f"vlmedge build BUNDLE ...{added} --emit-script {script}"
        return f"write their script again with `{command}`"
    return f"build them again with `{engine_set.command}{added}`"


def _rebuild(engine_set: EngineSet) -> str:
    return f"build it again with `{engine_set.command}`"


def _check(engine_set: EngineSet, where: str) -> None:
    """What types alone don't say: file names that stay in the folder, hashes, shapes in order."""
    for name in ("version", "command", "created_by"):
        text = getattr(engine_set, name)
        if not text or not text.isprintable():  # messages show them, on a terminal
            raise BundleError(f"{where}: {name} is {text!r:.80}, needed one line of text")
    if not engine_set.gpu.name.isprintable() or not _SM.fullmatch(engine_set.gpu.sm):
        raise BundleError(
            f"{where}: gpu is {engine_set.gpu!r:.120}, needed a name and an sm of 8.7"
        )
    hashes = (*engine_set.graph_sha256.values(), *engine_set.weights_sha256.values())
    _check_hashes(hashes, where)
    for graph, chain in engine_set.chains.items():
        if not chain or graph not in engine_set.graph_sha256:
            raise BundleError(f"{where}: the {graph} graph has no engines or no hash of its file")
        for engine in chain:
            _check_engine(engine, where)
    files = [engine.file for engine in list_engines(engine_set)]
    if len(set(files)) < len(files):
        raise BundleError(f"{where} names an engine's file twice")


def _check_engine(engine: EngineRecord, where: str) -> None:
    name = engine.file
    if not name.isprintable() or set(name) & set("/\\:") or name[:1] in ("", ".", "-"):
        raise BundleError(f"{where}: engine file name {name!r:.80} leaves the folder")
    if not TENSOR_NAME.fullmatch(engine.name):
        raise BundleError(f"{where}: an engine is called {engine.name!a:.80}, needed a plain name")
    check_tensors((*engine.inputs, *engine.outputs), f"{where}: {name}")
    _check_hashes((engine.sha256,), where)
    if engine.bytes < 1 or not engine.profiles:
        raise BundleError(f"{where}: {name} has {engine.bytes} bytes, or no profile")
    ranks = {tensor.name: len(tensor.shape) for tensor in engine.inputs}
    for profile in engine.profiles:
        for tensor, shapes in profile.shapes.items():
            least, best, most = shapes.min, shapes.opt, shapes.max
            if not len(least) == len(best) == len(most) == ranks.get(tensor):
                raise BundleError(
                    f"{where}: {name} has no input {tensor} of {len(most)} dimensions"
                )
            if not all(0 <= a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
                raise BundleError(
                    f"{where}: {name}: {tensor} has shapes {least} to {best} to {most}, "
                    "needed them in order"
                )


def _check_hashes(hashes: Iterable[str], where: str) -> None:
    for sha256 in hashes:
        if not _SHA256.fullmatch(sha256):
            raise BundleError(f"{where}: {sha256!r:.80} is no SHA-256")
