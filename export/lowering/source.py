"""Open a checkpoint or a bundle as graphs of the onnxruntime flavor, and find their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from ...quant.files.source_stamp import SourceStamp, read_stamped
from ...quant.graph.files import read_graph
from ...runtime.bundle.embedding_table import EmbeddingTable
from ...runtime.bundle.hash_check import HashCheck
from ...runtime.bundle.manifest import MANIFEST_NAME, Manifest
from ...runtime.files.regular_file import read_regular
from ..checkpoint.open import Checkpoint
from ..checkpoint.weights.tensor_source import TensorSource
from ..exporter import EMBEDDING_NAME, prepare
from ..graphs.data_file import DataFile
from ..graphs.weights import StoredTensor, Weight
from .initializers import Located, locate_bundle, locate_weights


@dataclass(frozen=True, slots=True)
class Source:
    """What is lowered.

    Attributes:
        manifest: of the bundle, or of the one that the checkpoint would become.
        located: graph -> its weights outside of it, by name.
        texts: small files, by name.
        embedding: the table's new file, and the table in it.
        stamp: of the files that are read.
        checkpoint: None where a bundle is lowered.
        hashes: of the bundle's files, not yet begun; None where a checkpoint is lowered.
    """

    manifest: Manifest
    models: Mapping[str, onnx.ModelProto]
    located: Mapping[str, Mapping[str, Located]]
    texts: Mapping[str, bytes]
    embedding: tuple[DataFile, EmbeddingTable]
    stamp: SourceStamp
    checkpoint: Checkpoint | None = field(default=None)
    hashes: HashCheck | None = field(default=None)


def open_source(source: str | Path, adapters: Sequence[Path] | None = None) -> Source:
    """Open either; adapters as in `open_checkpoint`.

    Raises:
        BundleError: a damaged bundle.
        ValueError: a damaged or unsupported checkpoint, or a bundle that is for TensorRT already.
    """
    if (Path(source) / MANIFEST_NAME).is_file():
        if adapters:
            raise ValueError("adapters are merged into a checkpoint, not into a bundle")
        return _open_bundle(Path(source))
    prepared = prepare(source, adapters=adapters)
    if prepared.source.packed:
        raise ValueError(
            f"the layers of {prepared.source.name} are packed: vlmedge export it to a bundle, then "
            "give the bundle to export --target"
        )
    located = locate_weights(prepared.graphs.data_files)
    return Source(
        prepared.manifest,
        {name: ir.to_proto(model) for name, model in prepared.graphs.models.items()},
        dict.fromkeys(prepared.graphs.models, located),
        prepared.texts,
        (prepared.embedding, prepared.manifest.embedding),
        prepared.source.stamp,
        prepared.source,
    )


def _open_bundle(folder: Path) -> Source:
    manifest, stamp = read_stamped(folder)
    if manifest.target is not None:
        raise ValueError(
            f"{folder} is for {manifest.target.name} already: give the checkpoint, or the bundle "
            "that it was made of"
        )
    hashes = HashCheck(folder, manifest)  # stamps the files before any is read
    models = {name: read_graph(folder, manifest, name) for name in manifest.graphs}
    texts = (manifest.tokenizer_file, manifest.chat_template_file)
    return Source(
        manifest,
        models,
        {name: locate_bundle(folder, model) for name, model in models.items()},
        {name: read_regular(folder / name) for name in texts},
        _copy_table(folder, manifest),
        stamp,
        hashes=hashes,
    )


def _copy_table(folder: Path, manifest: Manifest) -> tuple[DataFile, EmbeddingTable]:
    """The table alone in a file: the engines have their own lm_head, the graphs' files can go."""
    old = manifest.embedding
    data = DataFile(EMBEDDING_NAME)
    element_bytes = {"float32": 4, "float16": 2, "bfloat16": 2}.get(old.dtype, 1)
    _copy_rows(data, folder / old.file, "table", old.offset, old.stored_shape, element_bytes)
    packing = old.packing
    if packing is not None:
        path = folder / packing.scales_file
        offset = _copy_rows(data, path, "scales", packing.scales_offset, old.scales_shape, 4)
        packing = dataclasses.replace(packing, scales_file=EMBEDDING_NAME, scales_offset=offset)
    return data, dataclasses.replace(old, file=EMBEDDING_NAME, offset=0, packing=packing)


def _copy_rows(
    data: DataFile, path: Path, name: str, offset: int, shape: tuple[int, ...], element_bytes: int
) -> int:
    """Lay out an array's bytes as they are; where they will lie."""
    row_bytes = element_bytes
    for size in shape[1:]:
        row_bytes *= size
    rows = (shape[0], row_bytes)
    source = TensorSource(name, "U8", rows, path, offset, shape[0] * row_bytes)
    stored = StoredTensor(name, ir.DataType.UINT8, rows)
    (tensor,) = data.add(Weight((stored,), (source,), lambda raw, _dtype, _start: (raw,)))
    return tensor.offset or 0
