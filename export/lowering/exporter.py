"""Export a checkpoint or a bundle as a bundle of TensorRT graphs, put in place at once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import onnx

from ...quant.files.bundle_target import check_target
from ...quant.files.hashed_file import write_small
from ...quant.files.staged_folder import check_free_space, staged_folder
from ...runtime import __version__
from ...runtime.bundle.embedding_table import EmbeddingTable
from ...runtime.bundle.manifest import FileRecord, GraphSpec, Manifest, TargetRecord, TensorSpec
from ...runtime.bundle.manifest_checks import check_file_name
from ...runtime.inputs.request_check import check_requests
from ..checkpoint.source_hashes import SourceHashes
from ..exporter import Progress, Tell, check_sources, write_data, write_manifest
from ..graphs.data_file import DataFile
from ..graphs.decoder import EMBEDDINGS
from .context import Lowering
from .coverage import list_coverage, list_precisions
from .emitter import TYPE_NAMES, Emitter
from .graph import lower_graph
from .initializers import LINKABLE, Initializers
from .options import LoweringOptions
from .source import Source, open_source
from .targets import check_device

# graph -> the file its weights are in
DATA_FILES = {
    "vision": "vision.onnx.data",
    "vision_video": "vision.onnx.data",
    "decoder": "decoder.onnx.data",
}
LINKING_THREADS = min(4, os.cpu_count() or 1)  # hashing is all the work there is then


def export_for_target(
    source: str | Path,
    bundle: str | Path,
    options: LoweringOptions,
    progress: Progress | None = None,
    *,
    adapters: Sequence[Path] | None = None,
    tell: Tell | None = None,
) -> Manifest:
    """Write a bundle of flavor "tensorrt"; an old bundle of the same name is replaced at the end.

    Args:
        source: a checkpoint (directory or hub id), or a bundle of flavor "onnxruntime", float or
            quantized by any recipe but those with an int8 KV cache.
        bundle: the directory to write.
        options: target and dtype.
        progress: called after each block, from this thread.
        adapters: LoRA adapters to merge, as in `open_checkpoint`.
        tell: called with each remark about the checkpoint.

    Raises:
        BundleError: a damaged bundle.
        ValueError: a damaged or unsupported source, one that the target or device can't run or
            that changed meanwhile, or a target that is no bundle or is written by another process.
        OSError: no space, a failing disk, or a link across file systems.
    """
    target = Path(bundle)
    check_target(target, source)
    opened = open_source(source, adapters)
    if opened.checkpoint is not None:
        check_sources(target, opened.checkpoint, tell)
    layers = {e.name: e.precision for e in opened.manifest.coverage if e.graph is not None}
    check_device(list(layers.values()), options.row, options.device)
    linked = _start_linking(opened, options)
    with opened.hashes or nullcontext():  # a damaged bundle's damage must not get fresh hashes
        return _export(opened, target, options, linked, progress)


def _export(
    opened: Source,
    target: Path,
    options: LoweringOptions,
    linked: set[Path] | None,
    progress: Progress | None,
) -> Manifest:
    capacity = options.capacity(opened.manifest.decoder.max_position_embeddings)
    data = {file: DataFile(file) for file in dict.fromkeys(DATA_FILES.values())}
    models, notes = {}, {}
    for name, model in opened.models.items():
        lowering = _set_up(opened, name, options, data[DATA_FILES[name]], linked)
        models[name] = lower_graph(name, model, lowering, capacity)
        notes |= lowering.notes
    table_file, table = opened.embedding
    if linked is not None and opened.checkpoint is not None:
        table, table_file = _link_table(opened, linked), None
    for path in linked or ():
        check_file_name(path.name)  # it becomes one of the bundle's
    data_files = [file for file in (*data.values(), table_file) if file and file.weights]
    check_free_space(target, sum(file.nbytes for file in data_files))

    with ExitStack() as stack:
        folder = stack.enter_context(staged_folder(target))
        hashes = None
        if opened.checkpoint is not None:
            num_threads = 1 if linked is None else LINKING_THREADS
            hashes = stack.enter_context(SourceHashes(opened.checkpoint, num_threads))
        files = {name: write_small(folder / name, text) for name, text in opened.texts.items()}
        check_requests(folder, opened.manifest)
        for name, model in models.items():
            content = model.SerializeToString(deterministic=True)
            files[f"{name}.onnx"] = write_small(folder / f"{name}.onnx", content)
        for path in sorted(linked or ()):
            _link(path, folder)
        files |= write_data(tuple(data_files), folder, progress)
        origin = opened.manifest.source
        if hashes:
            origin = dataclasses.replace(origin, sha256=hashes.result())
            for path in linked or ():
                record = FileRecord(path.stat().st_size, origin.sha256[path.name])
                files[path.name] = record
        manifest = dataclasses.replace(
            opened.manifest,
            created_by=f"vlmedge {__version__}",
            flavor="tensorrt",
            source=origin,
            embedding=table,
            graphs={name: _describe(name, model, opened) for name, model in models.items()},
            precision=list_precisions(opened.manifest, options.compute, notes),
            coverage=list_coverage(opened.manifest, options.compute, notes),
            files=dict(sorted(files.items())),
            target=TargetRecord(
                name=options.target,
                tensorrt=options.row.tensorrt,
                dtype=options.compute,  # type: ignore[arg-type]  # a value of DTYPES
                cache=options.row.cache,
                capacity=capacity,
            ),
        )
        if opened.hashes is not None:
            opened.hashes.wait()
        opened.stamp.check()
        write_manifest(folder, manifest)
    return manifest


def _set_up(
    source: Source, name: str, options: LoweringOptions, data: DataFile, linked: set[Path] | None
) -> Lowering:
    emitter = Emitter(options.compute)
    weights = Initializers(emitter, source.models[name], source.located[name], data, linked)
    head_dim = source.manifest.decoder.head_dim
    if name != "decoder":
        head_dim = source.manifest.vision.embed_dim // source.manifest.vision.num_heads
    return Lowering(emitter, weights, options.row, options.row.cache, head_dim)


def _start_linking(source: Source, options: LoweringOptions) -> set[Path] | None:
    """An empty set of linked files; None: nothing is to be linked.

    Raises:
        ValueError: what is to be linked isn't there in the compute type.
    """
    if not options.link_weights:
        return None
    if source.checkpoint is None:
        raise ValueError("--link-weights links a checkpoint's files: give the checkpoint")
    if source.checkpoint.adapters:
        raise ValueError("--link-weights links weights as they are: leave it out with adapters")
    wanted = LINKABLE[options.compute]
    others = {t.dtype for t in source.checkpoint.tensors.values()} - {wanted}
    if others:
        raise ValueError(
            f"--link-weights needs a checkpoint of {wanted} for --dtype {options.dtype}, this one "
            f"has {', '.join(sorted(others))}: leave the option out, the weights are cast then"
        )
    return set()


def _link_table(source: Source, linked: set[Path]) -> EmbeddingTable:
    assert source.checkpoint is not None
    tensor = source.checkpoint.tensors[EMBEDDINGS]
    linked.add(tensor.path)
    return dataclasses.replace(
        source.manifest.embedding, file=tensor.path.name, offset=tensor.offset
    )


def _link(path: Path, folder: Path) -> None:
    """A hard link: loaders refuse symbolic links and paths that leave the graph's folder.

    Raises:
        OSError: the file lies on another file system, or on one without links.
    """
    try:
        os.link(path.resolve(), folder / path.name)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} can't be linked beside the graphs ({error.strerror}): write the bundle on "
            "the checkpoint's file system, or leave --link-weights out",
        ) from error


def _describe(name: str, model: onnx.ModelProto, source: Source) -> GraphSpec:
    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        return TensorSpec(value.name, TYPE_NAMES[tensor.elem_type], shape)  # type: ignore[arg-type]

    return GraphSpec(
        f"{name}.onnx",
        tuple(spec(value) for value in model.graph.input),
        tuple(spec(value) for value in model.graph.output),
        source.manifest.graphs[name].keep_qdq,
    )
