"""Check that every graph of a bundle loads, type-checks and runs here with finite numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ...quant.check.value_range import (
    computes_in_float16,
    describe_near,
    describe_overflow,
    draw_examples,
    measure_ranges,
)
from ...runtime.backends.cache_mask import make_mask, make_write_indices
from ...runtime.backends.ort.exact_products import make_entries
from ...runtime.bundle.manifest import DecoderSpec, GraphSpec, Manifest, TargetRecord
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.errors import BundleError
from ...runtime.terminal.console import print_notice

GRID = 4  # patches a side of the picture that is run: the smallest with several visual tokens
PROMPT_LENGTHS = (5, 3)  # a ragged batch
CAPACITY = 8
ERRORS_ONLY = 3  # not that a cache is copied where past and present are two buffers


@dataclass(frozen=True, slots=True)
class GraphCheck:
    """One graph that passed."""

    name: str
    num_nodes: int
    num_inferred: int  # values whose shape ONNX's own inference could tell
    largest_output: float | None  # absolute value; None: bfloat16, which doesn't run on a CPU


def check_bundle(bundle: str | Path) -> list[GraphCheck]:
    """Check every graph of a bundle; what is wrong is an error.

    Raises:
        BundleError: names the graph and what failed.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    checks = [_check_graph(folder, manifest, name) for name in manifest.graphs]
    if computes_in_float16(manifest):
        ranges = measure_ranges(folder, manifest, draw_examples())
        if overflow := describe_overflow(ranges):
            raise BundleError(f"{folder}: {overflow}")
        if near := describe_near(ranges):
            print_notice(near)
    return checks


def _check_graph(folder: Path, manifest: Manifest, name: str) -> GraphCheck:
    graph = manifest.graphs[name]
    path = folder / graph.file
    # onnx's checker refuses to look at linked files; types are inferred all the same
    is_linked = any((folder / file).stat().st_nlink > 1 for file in manifest.files)
    try:
        if not is_linked:
            onnx.checker.check_model(str(path))  # by path: it looks for the external data too
        model = onnx.load(path, load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=is_linked)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(f"{path} is no valid ONNX: {str(error).splitlines()[0]}") from error
    _check_interface(path, model, graph)
    counts = len(model.graph.node), len(model.graph.value_info)
    if manifest.target is not None and manifest.target.dtype == "bfloat16":
        return GraphCheck(name, *counts, None)
    outputs = _run(path, _make_inputs(manifest, name))
    for spec, output in zip(graph.outputs, outputs, strict=True):
        if not np.isfinite(output).all():
            raise BundleError(f"{path}: {spec.name} is not finite on a random input")
    largest = max(float(np.abs(output).max()) for output in outputs)
    return GraphCheck(name, *counts, largest)


def _check_interface(path: Path, model: onnx.ModelProto, graph: GraphSpec) -> None:
    """The manifest promises the host what the file holds."""
    for kind, declared, promised in (
        ("inputs", model.graph.input, graph.inputs),
        ("outputs", model.graph.output, graph.outputs),
    ):
        found = [(value.name, _shape(value)) for value in declared]
        wanted = [(spec.name, spec.shape) for spec in promised]
        if found != wanted:
            raise BundleError(f"{path}: {kind} {found} are not the manifest's {wanted}")


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_param if dim.HasField("dim_param") else dim.dim_value for dim in dims)


def _run(path: Path, inputs: dict[str, NDArray]) -> list[NDArray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    for key, value in make_entries(path, keep_qdq=False).items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        outputs = session.run(None, inputs)
    except Exception as error:  # onnxruntime's are of a private module, all derived from Exception
        raise BundleError(f"onnxruntime refused {path}: {str(error).splitlines()[0]}") from error
    return [np.asarray(output) for output in outputs]


def _make_inputs(manifest: Manifest, name: str) -> dict[str, NDArray]:
    random = np.random.default_rng(0)
    if name == "decoder":
        return _decoder_inputs(manifest.decoder, manifest.target, random)
    frames = {"vision": 1, "vision_video": 2}[name]
    size = frames * 3 * manifest.vision.patch_size**2
    merge = manifest.vision.spatial_merge_size
    rows, columns = np.indices((GRID, GRID)).reshape(2, GRID // merge, merge, GRID // merge, merge)
    ids = np.stack([rows, columns], axis=-1).swapaxes(1, 2).reshape(1, GRID * GRID, 2)
    return {
        "pixel_values": random.integers(0, 256, (1, GRID * GRID, size), dtype=np.uint8),
        "position_ids": ids.astype(np.int64),
    }


def _decoder_inputs(
    spec: DecoderSpec, target: TargetRecord | None, random: np.random.Generator
) -> dict[str, NDArray]:
    batch, length = len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)
    lengths = np.array(PROMPT_LENGTHS, np.int32)
    embeds = random.standard_normal((batch, length, spec.hidden_size), np.float32)
    inputs: dict[str, NDArray] = {
        "inputs_embeds": embeds,
        "position_ids": np.broadcast_to(np.arange(length), (3, batch, length)).astype(np.int64),
        "logit_index": (lengths - 1).astype(np.int64),
    }
    capacity, dtype = CAPACITY, "float32"
    if target is None:
        inputs["seqlens_k"] = lengths - 1
        inputs["total_sequence_length"] = np.array(length, np.int32)
    else:
        capacity, dtype = target.capacity or CAPACITY, target.dtype
        starts = make_write_indices(lengths - 1, length)
        inputs["attention_mask"] = make_mask(starts, length, capacity, target.cache)
        if target.cache == "in_place":
            inputs["write_indices"] = starts
    empty = np.zeros((batch, spec.num_kv_heads, capacity, spec.head_dim), dtype)
    for i in range(spec.num_layers):
        inputs[f"past_key_values.{i}.key"] = inputs[f"past_key_values.{i}.value"] = empty
    return inputs
