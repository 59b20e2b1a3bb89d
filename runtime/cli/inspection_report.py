"""Show what was found in a bundle, as tables or as one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..backends.trt.engine_inspection import EngineSetCheck, describe_engine_set
from ..bundle.generation_defaults import describe_settings
from ..bundle.inspection import FileCheck, count_precisions
from ..bundle.manifest import CoverageEntry, Manifest, QuantizationRecord, TargetRecord, TensorSpec
from ..terminal.console import format_bytes, print_notice, print_table
from ..terminal.tables import Column
from .layer_ranges import fold_layers


def make_json(
    manifest: Manifest,
    checks: Sequence[FileCheck],
    unlisted: Sequence[str],
    engines: Sequence[EngineSetCheck] = (),
) -> dict[str, Any]:
    """The manifest as it is, the state of each file and engine, and `ok`: none is bad."""
    return {
        "ok": not any(check.is_bad for check in (*checks, *engines)),
        "manifest": dataclasses.asdict(manifest),
        "precision_summary": count_precisions(manifest),
        "file_states": {check.name: check.state for check in checks},
        "engine_sets": [describe_engine_set(check) for check in engines],
        "unlisted_files": list(unlisted),
    }


def print_report(
    bundle: Path, manifest: Manifest, checks: Sequence[FileCheck], unlisted: Sequence[str]
) -> None:
    """Source, constants, graphs, precisions and files, a table each."""
    print_table(f"Bundle {bundle.name}", ("", ""), _list_properties(manifest, checks))
    for name, graph in manifest.graphs.items():
        tensors = [("in", tensor) for tensor in graph.inputs]
        tensors += [("out", tensor) for tensor in graph.outputs]
        print_table(
            f"Graph {name} ({graph.file})",
            ("", "name", "dtype", "shape"),
            _list_tensors(tensors),
        )
    print_table(
        "Precision",
        ("part", "stored as", ">tensors"),
        [
            (part, precision, count)
            for part, counts in count_precisions(manifest).items()
            for precision, count in counts.items()
        ],
    )
    print_table(
        "Files",
        ("file", ">size", "SHA-256", Column("state", is_verdict=True)),
        [
            (
                check.name,
                format_bytes(check.bytes),
                manifest.files[check.name].sha256[:12],
                check.state,
            )
            for check in checks
        ],
    )
    if unlisted:
        print_notice(f"not in the manifest, ignored by the runtime: {', '.join(unlisted)}")


def print_engines(checks: Sequence[EngineSetCheck]) -> None:
    """A table of each engine set, and what is wrong with it."""
    for check in checks:
        found = check.engine_set
        title = f"Engines {check.key}"
        if found is not None:
            print_table(
                f"{title}: {found.builder} {found.version}, compute capability {found.gpu.sm}",
                ("file", ">size", Column("state", is_verdict=True)),
                [(file.name, format_bytes(file.bytes), file.state) for file in check.files],
            )
        if check.problem:
            print_notice(f"{title}: {check.problem}")


def print_coverage(bundle: Path, manifest: Manifest, checks: Sequence[FileCheck]) -> None:
    """Source and constants, and a row for each linear, attention, cache and table."""
    print_table(f"Bundle {bundle.name}", ("", ""), _list_properties(manifest, checks))
    print_table(
        "Coverage",
        ("name", "kind", "graph", "precision", "reason"),
        list_coverage(manifest.coverage),
    )


def list_coverage(coverage: Sequence[CoverageEntry]) -> list[tuple[str, str, str, str, str]]:
    """(name, kind, graphs, precision, reason), equal layers and equal graphs in one row."""
    graphs: dict[tuple[str, str, str, str], list[str]] = {}
    for entry in coverage:
        key = (entry.name, entry.kind, entry.precision, entry.reason)
        graphs.setdefault(key, []).append(entry.graph or "host")
    named = [
        (name, (kind, ", ".join(where), precision, reason))
        for (name, kind, precision, reason), where in graphs.items()
    ]
    return [(name, *rest) for name, rest in fold_layers(named)]


def _list_properties(manifest: Manifest, checks: Sequence[FileCheck]) -> list[tuple[str, str]]:
    vision, decoder, pixels = manifest.vision, manifest.decoder, manifest.pixels
    generation = manifest.generation
    sampled = f"temperature {generation.temperature:g}, top-k {generation.top_k}, "
    sampled += f"top-p {generation.top_p:g}"
    token_area = (vision.patch_size * vision.spatial_merge_size) ** 2
    return [
        ("source", manifest.source.name),
        ("made by", f"{manifest.created_by}, schema {manifest.schema_version}"),
        ("family, flavor", f"{manifest.family}, {manifest.flavor}"),
        *_list_target(manifest.target),
        (
            "vision",
            f"{vision.depth} layers of {vision.embed_dim}, {vision.num_heads} heads, "
            f"patch {vision.patch_size}, merge {vision.spatial_merge_size}",
        ),
        (
            "decoder",
            f"{decoder.num_layers} layers of {decoder.hidden_size}, {decoder.num_heads} heads "
            f"({decoder.num_kv_heads} KV) of {decoder.head_dim}, vocabulary {decoder.vocab_size}, "
            f"context {decoder.max_position_embeddings}",
        ),
        (
            "picture",
            f"{pixels.min_pixels} to {pixels.max_pixels} pixels, "
            f"{pixels.min_pixels // token_area} to {pixels.max_pixels // token_area} tokens",
        ),
        ("M-RoPE rule", manifest.mrope_rule),
        (
            "generation",
            ", ".join(
                (
                    sampled if generation.do_sample else "greedy",
                    f"repetition penalty {generation.repetition_penalty:g}",
                    *describe_settings(generation),
                )
            ),
        ),
        ("embedding", f"{manifest.embedding.description} {list(manifest.embedding.shape)}"),
        *_list_quantization(manifest.quantization),
        ("size", format_bytes(sum(check.bytes for check in checks))),
    ]


def _list_target(target: TargetRecord | None) -> list[tuple[str, str]]:
    if target is None:
        return []
    cache = "cache of any size" if target.capacity is None else f"cache of {target.capacity}"
    text = f"{target.name} (TensorRT {target.tensorrt} or newer), {target.dtype}, {cache}"
    return [("target", text)]


def _list_quantization(record: QuantizationRecord | None) -> list[tuple[str, str]]:
    if record is None:
        return []
    data = "none needed"
    if record.data is not None:
        data = f"{record.data}, SHA-256 {(record.data_sha256 or 'unknown')[:12]}"
    tools = ", ".join(f"{tool} {version}" for tool, version in sorted(record.versions.items()))
    return [("quantized by", f"recipe {record.recipe}, {tools}"), ("calibrated on", data)]


def _list_tensors(tensors: Sequence[tuple[str, TensorSpec]]) -> list[tuple[str, str, str, str]]:
    """One row for the equal tensors of all layers: past_key_values.{0..27}.key."""
    named = [
        (tensor.name, (side, tensor.dtype, f"[{', '.join(map(str, tensor.shape))}]"))
        for side, tensor in tensors
    ]
    return [(side, name, dtype, shape) for name, (side, dtype, shape) in fold_layers(named)]
