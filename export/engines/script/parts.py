"""List the engines that a script builds of a bundle's graphs: files, weights, shapes.

What needs a graph's inside is done here, where onnx is: the device only gets files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....runtime.backends.trt.engine_set import Profile
from ....runtime.bundle.manifest import Manifest, TensorSpec
from ....runtime.errors import BackendError, BundleError
from ..profiles import derive_extents, shape_profiles
from ..settings import BuildSettings


@dataclass(frozen=True, slots=True)
class ScriptPart:
    """One engine.

    Attributes:
        chain: the bundle's graph that it is, or is a part of.
        name: of the engine.
        graph: its ONNX file; in the bundle, or made for the script.
        content: of the file that is made; None: it is the bundle's.
        data_files: of the bundle, that hold its weights.
        num_weight_bytes: of the weights it reads from them.
    """

    chain: str
    name: str
    graph: str
    content: bytes | None
    data_files: tuple[str, ...]
    num_weight_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]


def make_parts(bundle: Path, manifest: Manifest, settings: BuildSettings) -> tuple[ScriptPart, ...]:
    """The engines in the order of their building.

    Raises:
        BackendError: there is no onnx.
        BundleError: a graph is damaged or wants files that are not the bundle's.
        ValueError: the settings ask for more than the bundle has.
    """
    try:
        from ..split import list_data_files, read_graph, split_decoder
    except ModuleNotFoundError as error:
        raise BackendError(
            f"a script is written where the bundle is exported: {error.name} is missing, "
            "pip install 'vlmedge[export]'"
        ) from error
    parts = []
    for chain, extents in derive_extents(manifest, settings).items():
        spec = manifest.graphs[chain]
        model = read_graph(bundle / spec.file)
        for name in list_data_files(model):
            if name not in manifest.files:
                raise BundleError(
                    f"{bundle / spec.file} reads its weights from {name!a:.200}, of which the "
                    "manifest has no record: the file is another bundle's"
                )
        is_whole = chain != "decoder" or (settings.split == 1 and not settings.separate_lm_head)
        pieces: list[tuple[str, Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]
        if is_whole:
            pieces = [(chain, model, spec.inputs, spec.outputs)]
        else:
            pieces = [
                (part.name, part.model, part.inputs, part.outputs)
                for part in split_decoder(
                    model, spec, settings.split, separate_lm_head=settings.separate_lm_head
                )
            ]
        for name, piece, inputs, outputs in pieces:
            parts.append(
                ScriptPart(
                    chain=chain,
                    name=name,
                    graph=spec.file if is_whole else f"{name}.onnx",
                    content=None if is_whole else piece.SerializeToString(deterministic=True),
                    data_files=tuple(list_data_files(piece)),
                    num_weight_bytes=_count_external_bytes(piece),
                    inputs=inputs,
                    outputs=outputs,
                    profiles=shape_profiles(inputs, extents),
                )
            )
    return tuple(parts)


def _count_external_bytes(model: Any) -> int:
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )
