"""Write the quantized bundle from the numbers of every layer, put in place at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from numpy.typing import NDArray

from ...runtime import __version__
from ...runtime.bundle.embedding_table import EmbeddingTable
from ...runtime.bundle.manifest import (
    MANIFEST_NAME,
    CoverageEntry,
    FileRecord,
    GraphSpec,
    Manifest,
    QuantizationRecord,
)
from ...runtime.bundle.manifest_file import parse_manifest, to_json
from ...runtime.files.regular_file import read_regular
from ...runtime.inputs.request_check import check_requests
from ..files.hashed_file import write_small
from ..files.staged_folder import check_free_space, staged_folder, write_text
from ..graph.files import read_graph
from ..graph.joined_names import split_joined
from .data_file import BundleData
from .embedding_table import WrittenTable, measure_table, share_head, write_table
from .fp8_attention import make_attention_nodes
from .int8_cache import PRECISIONS, make_cache_nodes, mark_cache
from .linear_nodes import QuantizedLinear, describe_precision, place
from .model_quantizer import QuantizedModel
from .plan import LM_HEAD, LayerPlan
from .rewrite import RewrittenGraph, rewrite

# graph -> the file its weights are in
DATA_FILES = {
    "vision": "vision.onnx.data",
    "vision_video": "vision.onnx.data",
    "decoder": "decoder.onnx.data",
}
TABLE = "model.embed_tokens"
Advance = Callable[[int], None]  # called with a number of bytes just written


def build_bundle(
    source: Path,
    manifest: Manifest,
    quantized: QuantizedModel,
    record: QuantizationRecord,
    target: Path,
    advance: Advance,
    *,
    before_publishing: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write a quantized bundle; an old one of the same name is replaced at the end.

    Args:
        source: the float bundle.
        manifest: its manifest.
        quantized: what became of its layers.
        record: of how it was made.
        target: the folder to write.
        advance: called with a number of bytes just written.
        before_publishing: called when all is written; what it raises leaves the old bundle.

    Raises:
        BundleError: the float bundle is damaged.
        OSError: no space, or a failing disk.
    """
    recipe = quantized.plan.recipe
    rewritten = {name: _rewrite(source, manifest, quantized, name) for name in manifest.graphs}
    data = {file: BundleData(file, source) for file in dict.fromkeys(DATA_FILES.values())}
    graphs = {name: data[DATA_FILES[name]].attach(graph) for name, graph in rewritten.items()}
    shared = None
    if recipe.embedding.format == "lm_head":
        head = quantized.stages["decoder"]["head"].linears[LM_HEAD]
        shared = _share(manifest.embedding, head, data[DATA_FILES["decoder"]])
    num_bytes = measure_table(source, manifest.embedding, recipe.embedding.format)
    check_free_space(target, num_bytes + sum(file.nbytes for file in data.values()))

    with staged_folder(target) as folder:
        files = {
            name: _copy_small(source, folder, name)
            for name in (manifest.tokenizer_file, manifest.chat_template_file)
        }
        check_requests(folder, manifest)
        for name, model in graphs.items():
            content = model.SerializeToString(deterministic=True)
            files[manifest.graphs[name].file] = write_small(
                folder / manifest.graphs[name].file, content
            )
        for name, file in data.items():
            files[name] = file.write(folder, advance)
        table = shared or write_table(
            source, manifest.embedding, recipe.embedding.format, folder, advance
        )
        made = dataclasses.replace(
            manifest,
            created_by=f"vlmedge {__version__}",
            embedding=table.table,
            graphs={name: _describe(manifest.graphs[name], graphs[name]) for name in graphs},
            precision=dict(sorted(_list_precisions(manifest, quantized, table.table).items())),
            coverage=tuple(_list_coverage(manifest, quantized, table.table)),
            quantization=record,
            files=dict(sorted((files | table.files).items())),
        )
        text = to_json(made)
        parse_manifest(text)  # what the runtime would refuse must not be written
        write_text(folder / MANIFEST_NAME, text)
        before_publishing()
    return made


def _rewrite(
    source: Path, manifest: Manifest, quantized: QuantizedModel, name: str
) -> RewrittenGraph:
    """One graph with its quantized layers."""
    part = "decoder" if name == "decoder" else "vision"
    model = read_graph(source, manifest, name)
    stages = quantized.stages[part].values()
    layers = quantized.plan.layers
    placed = {
        layers[layer].linear.node: place(layers[layer].linear, linear)
        for stage in stages
        for layer, linear in stage.linears.items()
    }
    replaced: dict[str, NDArray] = {}
    for stage in stages:
        replaced |= stage.replaced
    recipe, calibration = quantized.plan.recipe, quantized.calibration
    if name == "decoder":
        heads = manifest.decoder.num_kv_heads
        cache = make_cache_nodes(model.graph, recipe.kv_cache.format, calibration, heads)
        rewritten = rewrite(model, placed | cache, replaced)
        if cache:
            mark_cache(rewritten.model.graph)
        return rewritten
    heads = manifest.vision.num_heads
    products = make_attention_nodes(model.graph, recipe.attention.vision, calibration, heads)
    return rewrite(model, placed | products, replaced)


def _share(table: EmbeddingTable, head: QuantizedLinear, data: BundleData) -> WrittenTable:
    weight = f"{LM_HEAD}.weight"
    codes_at, scales_at = data.find(f"{weight}.packed"), data.find(f"{weight}.scales")
    return WrittenTable(share_head(table, head, data.name, codes_at, scales_at), {})


def _describe(spec: GraphSpec, model: onnx.ModelProto) -> GraphSpec:
    """A graph's entry: its cache may be int8 now, and FP8 must not be fused."""
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.output)
    }
    int8 = onnx.TensorProto.INT8

    def change(tensors):
        return tuple(
            dataclasses.replace(t, dtype="int8") if types[t.name] == int8 else t for t in tensors
        )

    float8 = onnx.TensorProto.FLOAT8E4M3FN
    has_float8 = any(tensor.data_type == float8 for tensor in model.graph.initializer)
    return dataclasses.replace(
        spec, inputs=change(spec.inputs), outputs=change(spec.outputs), keep_qdq=has_float8
    )


def _list_precisions(
    manifest: Manifest, quantized: QuantizedModel, table: EmbeddingTable
) -> dict[str, str]:
    """Of every checkpoint tensor."""
    precision = dict(manifest.precision)
    for plan in quantized.plan.layers.values():
        for tensor in split_joined(plan.linear.name):
            precision[tensor] = describe_precision(plan.recipe, precision[tensor])
    precision[f"{TABLE}.weight"] = table.description
    return precision


def _list_coverage(
    manifest: Manifest, quantized: QuantizedModel, table: EmbeddingTable
) -> Iterator[CoverageEntry]:
    """The float bundle's entries, with what the recipe made of them."""
    recipe = quantized.plan.recipe
    for entry in manifest.coverage:
        plan = quantized.plan.layers.get(entry.name)
        precision, reason = entry.precision, entry.reason
        if plan is not None:
            precision, reason = _cover_layer(plan, entry)
        elif entry.kind == "kv_cache" and recipe.kv_cache.format != "float":
            precision, reason = PRECISIONS[recipe.kv_cache.format], "recipe"
        elif entry.kind == "attention" and (entry.graph or "").startswith("vision"):
            if recipe.attention.vision != "float":
                precision, reason = "float8_e4m3fn", "recipe"
        elif entry.kind == "table" and recipe.embedding.format != "float":
            precision, reason = table.description, quantized.plan.table_reason
        yield dataclasses.replace(entry, precision=precision, reason=reason)


def _cover_layer(plan: LayerPlan, entry: CoverageEntry) -> tuple[str, str]:
    return describe_precision(plan.recipe, entry.precision), plan.reason


def _copy_small(source: Path, folder: Path, name: str) -> FileRecord:
    return write_small(folder / name, read_regular(source / name))
