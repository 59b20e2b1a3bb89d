"""List the engines to build of a bundle's graphs, in order, each with an ONNX file.

A decoder in parts needs files of its own, beside links to the bundle's weights: loaders refuse
weights that are not in the graph's folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...quant.files.named_errors import naming
from ...runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec
from ...runtime.errors import BackendError, BundleError
from .settings import BuildSettings

DECODER = "decoder"


@dataclass(frozen=True, slots=True)
class Step:
    """One engine.

    Attributes:
        chain: the bundle's graph that it is, or is a part of.
        name: of the engine, and of its file without the suffix.
        graph: ONNX file.
    """

    chain: str
    name: str
    graph: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def make_steps(
    bundle: Path,
    manifest: Manifest,
    graphs: Iterable[str],
    settings: BuildSettings,
    parts_folder: Path,
) -> list[Step]:
    """What is built, in order; the files of parts are written.

    Args:
        bundle: the folder.
        manifest: of the bundle.
        graphs: the manifest's names.
        settings: whether, and how, the decoder is split.
        parts_folder: where files of parts go, on the disk of the bundle; made where needed.

    Raises:
        BundleError: a graph is not the one that the manifest was written for.
        BackendError: the decoder can't be split here.
        ValueError: or not in so many parts.
    """
    steps = []
    for name in graphs:
        spec = manifest.graphs[name]
        check_graph(bundle, manifest, spec)
        if name == DECODER and (settings.split > 1 or settings.separate_lm_head):
            steps += _split(bundle, manifest, spec, settings, parts_folder)
        else:
            steps.append(Step(name, name, bundle / spec.file, spec.inputs, spec.outputs))
    return steps


def check_graph(bundle: Path, manifest: Manifest, spec: GraphSpec) -> None:
    """Compare a graph's hash; `build_engines` has compared those of its weights.

    Raises:
        BundleError: it is another.
    """
    record = manifest.files[spec.file]
    if hashlib.sha256((bundle / spec.file).read_bytes()).hexdigest() != record.sha256:
        raise BundleError(f"{bundle / spec.file} is not what the manifest says: export it again")


def _split(
    bundle: Path,
    manifest: Manifest,
    spec: GraphSpec,
    settings: BuildSettings,
    parts_folder: Path,
) -> list[Step]:
    try:
        from .split import list_data_files, read_graph, split_decoder
    except ModuleNotFoundError as error:
        raise BackendError(
            f"splitting the decoder needs {error.name}: pip install onnx, or split it where "
            "onnx is, with --emit-script"
        ) from error
    model = read_graph(bundle / spec.file)
    parts = split_decoder(model, spec, settings.split, separate_lm_head=settings.separate_lm_head)
    parts_folder.mkdir()
    for name in list_data_files(model):
        if name not in manifest.files:  # a path that leaves the folder is none of them
            raise BundleError(
                f"{bundle / spec.file} reads its weights from {name!a:.200}, of which the manifest "
                "has no record: the file is another bundle's"
            )
        try:
            os.link(bundle / name, parts_folder / name)
        except OSError as error:
            raise BackendError(
                f"the parts of the decoder need hard links to {name}, which {bundle} refuses "
                f"({error.strerror}): copy the bundle to a disk with Linux's own file system"
            ) from error
    steps = []
    for part in parts:
        path = parts_folder / f"{part.name}.onnx"
        with naming(path):
            path.write_bytes(part.model.SerializeToString(deterministic=True))
        steps.append(Step(DECODER, part.name, path, part.inputs, part.outputs))
    return steps
