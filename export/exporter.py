"""Export a checkpoint as a bundle: checked, laid out, streamed and hashed, put in place at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from ..quant.files.bundle_target import check_apart, check_target
from ..quant.files.hashed_file import write_small
from ..quant.files.staged_folder import check_free_space, staged_folder, write_text
from ..runtime import __version__
from ..runtime.bundle.embedding_table import EmbeddingTable
from ..runtime.bundle.manifest import (
    MANIFEST_NAME,
    Dtype,
    FileRecord,
    GraphSpec,
    Manifest,
    Source,
    TensorSpec,
)
from ..runtime.bundle.manifest_file import SCHEMA_VERSION, parse_manifest, to_json
from ..runtime.files.plain_text import check_plain
from ..runtime.inputs.request_check import check_requests
from .checkpoint.open import Checkpoint, open_checkpoint
from .checkpoint.packed.matrix import PackedSource
from .checkpoint.settings import resolve_settings
from .checkpoint.source_hashes import SourceHashes
from .checkpoint.text.chat_template import TEMPLATE_NAME
from .checkpoint.text.tokenizer import TOKENIZER_NAME
from .graphs.carried import find_form
from .graphs.coverage import list_coverage
from .graphs.data_file import DataFile
from .graphs.decoder import EMBEDDINGS
from .graphs.flavors import BUILDERS, Graphs
from .graphs.options import ExportOptions
from .graphs.weights import copied_weight

EMBEDDING_NAME = "embedding.bin"

# (bytes read so far, bytes to read, what is being written)
Progress = Callable[[int, int, str], None]
Tell = Callable[[str], None]  # a line for the user

_TABLE_DTYPES: dict[str, Literal["float32", "float16", "bfloat16"]] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
_MANIFEST_DTYPES: dict[ir.DataType, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checkpoint that is read and laid out; nothing is written yet.

    Attributes:
        texts: small files, by name.
        embedding: the table's file.
        manifest: all but the files and the source's hashes.
    """

    source: Checkpoint
    graphs: Graphs
    texts: dict[str, bytes]
    embedding: DataFile
    manifest: Manifest


def prepare(
    checkpoint: str | Path,
    options: ExportOptions | None = None,
    adapters: Sequence[Path] | None = None,
) -> Prepared:
    """Read and check a checkpoint, and lay its graphs out; adapters as in `open_checkpoint`.

    Raises:
        ValueError: an unsupported or damaged checkpoint.
    """
    source = open_checkpoint(checkpoint, adapters)
    source = _settle_packed(source, options or ExportOptions())
    check_plain([source.name, *source.source_files], "the checkpoint's list of names")
    family, flavor = "qwen2_vl", "onnxruntime"
    settings = resolve_settings(source.folder, source.spec)
    source = dataclasses.replace(source, remarks=(*source.remarks, *settings.unusual))
    texts = {
        TOKENIZER_NAME: settings.tokenizer.content,
        TEMPLATE_NAME: settings.chat_template.encode(),
    }
    graphs = BUILDERS[family, flavor](source, options or ExportOptions(), settings.pixels)
    table = source.tensors[EMBEDDINGS]
    table_dtype = _TABLE_DTYPES[table.dtype]
    embedding = DataFile(EMBEDDING_NAME)
    embedding.add(copied_weight(EMBEDDINGS, table))
    precision = dict(sorted((graphs.precision | {EMBEDDINGS: table_dtype}).items()))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"vlmedge {__version__}",
        family=family,
        flavor=flavor,
        source=Source(source.name, {}),
        vision=source.spec.vision,
        decoder=source.spec.decoder,
        tokens=source.spec.tokens,
        pixels=settings.pixels,
        generation=settings.generation,
        mrope_rule="paper",
        embedding=EmbeddingTable(EMBEDDING_NAME, table_dtype, (table.shape[0], table.shape[1])),
        tokenizer_file=TOKENIZER_NAME,
        chat_template_file=TEMPLATE_NAME,
        graphs={name: _graph_spec(name, model) for name, model in graphs.models.items()},
        precision=precision,
        coverage=list_coverage(graphs.models, precision, source.packed),
        quantization=None,
        files={},
        special_tokens=settings.tokenizer.special_tokens,
    )
    return Prepared(source, graphs, texts, embedding, manifest)


def _settle_packed(source: Checkpoint, options: ExportOptions) -> Checkpoint:
    """A checkpoint whose packed layers are carried over, or taken as the floats they mean.

    Raises:
        ValueError: a layer that can't be carried, by name.
    """
    if not source.packed:
        return source
    if options.requantize:
        floats = {f"{name}.weight": PackedSource.of(m) for name, m in source.packed.items()}
        return dataclasses.replace(source, tensors={**source.tensors, **floats}, packed={})
    for name, matrix in source.packed.items():
        if not name.startswith("model.layers."):
            raise ValueError(
                f"{name} is packed by {matrix.method}, only the decoder's layers are carried over: "
                "--requantize takes its weights as floats"
            )
        find_form(matrix)
    return source


def export_checkpoint(
    checkpoint: str | Path,
    bundle: str | Path,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
    *,
    adapters: Sequence[Path] | None = None,
    tell: Tell | None = None,
) -> Manifest:
    """Write the bundle of a checkpoint; an old bundle of the same name is replaced at the end.

    Args:
        checkpoint: a directory, or a hub id.
        bundle: the directory to write.
        options: weight formats.
        progress: called after each block, from this thread.
        adapters: LoRA adapters to merge, as in `open_checkpoint`.
        tell: called with each remark about the checkpoint.

    Raises:
        ValueError: an unsupported or damaged checkpoint, one that changed meanwhile, or a target
            that is no bundle or is written by another process.
        OSError: no space, or a failing disk.
    """
    target = Path(bundle)
    check_target(target, checkpoint)
    prepared = prepare(checkpoint, options, adapters)
    check_sources(target, prepared.source, tell)
    data_files = (*prepared.graphs.data_files, prepared.embedding)
    check_free_space(target, sum(file.nbytes for file in data_files))
    with staged_folder(target) as folder, SourceHashes(prepared.source) as hashes:
        files = {
            name: write_small(folder / name, content) for name, content in prepared.texts.items()
        }
        check_requests(folder, prepared.manifest)
        for name, model in prepared.graphs.models.items():
            files[f"{name}.onnx"] = write_small(folder / f"{name}.onnx", _serialize(model))
        files |= write_data(data_files, folder, progress)
        manifest = dataclasses.replace(
            prepared.manifest,
            source=Source(prepared.source.name, hashes.result()),
            files=dict(sorted(files.items())),
        )
        prepared.source.stamp.check()
        write_manifest(folder, manifest)
    return manifest


def check_sources(target: Path, source: Checkpoint, tell: Tell | None) -> None:
    """Refuse a target inside of a folder that is read; tell what is unusual about the checkpoint.

    Raises:
        ValueError: the target is, or contains, the checkpoint's or an adapter's folder.
    """
    for folder in (source.folder, *source.adapters):
        check_apart(target, folder)
    if tell is not None:
        for remark in source.remarks:
            tell(remark)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json; what the runtime would refuse must not be written."""
    text = to_json(manifest)
    parse_manifest(text)
    write_text(folder / MANIFEST_NAME, text)


def write_data(
    data_files: tuple[DataFile, ...], folder: Path, progress: Progress | None
) -> dict[str, FileRecord]:
    """Write data files one after another; their records by name."""
    total, done = sum(file.source_nbytes() for file in data_files), 0
    records: dict[str, FileRecord] = {}
    for file in data_files:

        def advance(num_bytes: int, name: str = file.name) -> None:
            nonlocal done
            done += num_bytes
            if progress is not None:
                progress(done, total, name)

        records[file.name] = file.write(folder, advance)
    return records


def _serialize(model: ir.Model) -> bytes:
    """The graph alone: its weights are references into the data files."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def _graph_spec(name: str, model: ir.Model) -> GraphSpec:
    def spec(value: ir.Value) -> TensorSpec:
        assert value.name is not None  # inputs and outputs are declared with all three
        assert value.dtype is not None
        assert value.shape is not None
        shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
        return TensorSpec(value.name, _MANIFEST_DTYPES[value.dtype], shape)

    return GraphSpec(
        f"{name}.onnx",
        tuple(spec(value) for value in model.graph.inputs),
        tuple(spec(value) for value in model.graph.outputs),
        keep_qdq=any(  # ONNX Runtime's fusion takes float8 for int8
            value.dtype == ir.DataType.FLOAT8E4M3FN for value in model.graph.initializers.values()
        ),
    )
