"""Cut the decoder's graph between layers into consecutive graphs over the same weight files.

    inputs_embeds -> [layers 0..k] -> residual -> [layers k+1..] -> ... -> [lm_head] -> logits
                       past 0..k                     past k+1..

A build needs memory for the weights of one graph, so a part fits where the whole does not, and no
allocation is as large as the whole. Only the residual stream crosses: its sum, and the branch that
is yet to be added. What belongs to no layer (rotation tables, mask, sizes) is computed anew in
every part that needs it, from inputs that the part has anyway.

The one file of the builder, with split_plan.py, that needs onnx.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from ...runtime.bundle.manifest import Dtype, GraphSpec, TensorSpec
from .profiles import TOKENS
from .split_plan import GraphPlan, balance, plan_graph

LM_HEAD = "lm_head"
EMBEDDINGS = "inputs_embeds"  # [batch, sequence, hidden]
POSITIONS = "position_ids"  # [3, batch, sequence], an input of every layer
_PAST_KEY = re.compile(r"past_key_values\.\d+\.key")
_DTYPES: dict[int, Dtype] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One graph of the chain."""

    name: str  # "decoder.0", "lm_head"
    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def split_decoder(
    model: onnx.ModelProto, spec: GraphSpec, num_parts: int, *, separate_lm_head: bool
) -> list[Part]:
    """Cut the graph.

    Args:
        model: the decoder; its weights stay references into their files.
        spec: its inputs and outputs as the manifest has them.
        num_parts: of the layers, of about equal size in bytes.
        separate_lm_head: the last matrix as one part more.

    Raises:
        ValueError: more parts than layers, or a graph whose nodes don't say their layer.
    """
    plan = plan_graph(_take_sizes_from_positions(model.graph))
    *layers, head = plan.stage_bytes
    if num_parts > len(layers):
        raise ValueError(f"the decoder has {len(layers)} layers: it can't be split in {num_parts}")
    if not separate_lm_head:
        layers[-1] += head
    stages = balance(layers, num_parts)
    names = [f"decoder.{i}" for i in range(num_parts)] if num_parts > 1 else ["decoder"]
    if separate_lm_head:
        stages.append(range(len(layers), len(layers) + 1))
        names.append(LM_HEAD)
    else:
        stages[-1] = range(stages[-1].start, len(layers) + 1)
    types = _infer_types(model)
    return [
        _make_part(model, spec, plan, types, name, part)
        for name, part in zip(names, stages, strict=True)
    ]


def list_data_files(model: onnx.ModelProto) -> list[str]:
    """The files beside the graph that hold its weights."""
    files: dict[str, None] = {}
    for tensor in model.graph.initializer:
        files |= {entry.value: None for entry in tensor.external_data if entry.key == "location"}
    return list(files)


def read_graph(path: Path) -> onnx.ModelProto:
    """A graph without its weights."""
    return onnx.load(str(path), load_external_data=False)


def _make_part(
    model: onnx.ModelProto,
    spec: GraphSpec,
    plan: GraphPlan,
    types: dict[str, onnx.TypeProto.Tensor],
    name: str,
    part: range,
) -> Part:
    nodes = _take_capacity_from_own_cache([plan.nodes[i] for i in plan.list_nodes(part)])
    read = {value for node in nodes for value in node.input}
    made = {value for node in nodes for value in node.output}
    arriving = [_describe(value, plan, types) for value in plan.list_arriving(part)]
    leaving = [_describe(value, plan, types) for value in plan.list_leaving(part)]
    inputs = (*(tensor for tensor in spec.inputs if tensor.name in read), *arriving)
    outputs = (*(tensor for tensor in spec.outputs if tensor.name in made), *leaving)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = helper.make_graph(nodes, name, _declare(inputs), _declare(outputs), weights)
    made_model = helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    return Part(name, made_model, inputs, outputs)


def _take_sizes_from_positions(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Batch and sequence from the positions, which every part has, not from the embeddings.

    A Shape of the embeddings, or of their Cast, is the only thing that later parts need of them.
    """
    changed = onnx.GraphProto()
    changed.CopyFrom(graph)
    embeddings = {EMBEDDINGS}
    for node in changed.node:
        if node.op_type == "Cast" and node.input[0] in embeddings:
            embeddings.add(node.output[0])
        if node.op_type == "Shape" and node.input[0] in embeddings:
            bounds = {item.name: item.i for item in node.attribute}
            start, end = bounds.get("start", 0), bounds.get("end", 3)
            if not 0 <= start < end <= 2:
                continue
            node.input[0] = POSITIONS
            del node.attribute[:]
            bounds = {"start": start + 1, "end": end + 1}
            node.attribute.extend(helper.make_attribute(*item) for item in bounds.items())
    return changed


def _take_capacity_from_own_cache(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The caches of all layers are of one size: a part asks one of its own."""
    own = [
        value
        for node in nodes
        if node.op_type != "Shape"
        for value in node.input
        if _PAST_KEY.fullmatch(value)
    ]
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if own and node.op_type == "Shape" and _PAST_KEY.fullmatch(node.input[0]):
            copy.input[0] = own[0]
        copies.append(copy)
    return copies


def _infer_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    return {value.name: value.type.tensor_type for value in inferred}


def _describe(name: str, plan: GraphPlan, types: dict[str, onnx.TypeProto.Tensor]) -> TensorSpec:
    """What crosses: the residual stream, by its rank and by whether only the head is left."""
    kind = types.get(name)
    sizes = [dim.dim_value for dim in kind.shape.dim] if kind is not None else []
    dtype = _DTYPES.get(kind.elem_type) if kind is not None else None
    if dtype is None or len(sizes) not in (2, 3) or not sizes[-1]:
        raise ValueError(
            f"{name} would cross between two parts, with type {dtype} and {len(sizes)} "
            "dimensions: needed a float of 2 or 3, the last one fixed"
        )
    if len(sizes) == 3:
        return TensorSpec(name, dtype, ("batch", "sequence", sizes[-1]))
    # Past the last layer's attention only the asked-for position of each sequence is left
    return TensorSpec(name, dtype, ("batch" if plan.is_before_head(name) else TOKENS, sizes[-1]))


def _declare(specs: Iterable[TensorSpec]) -> list[onnx.ValueInfoProto]:
    types = {dtype: number for number, dtype in _DTYPES.items()} | {
        "int64": onnx.TensorProto.INT64,
        "bool": onnx.TensorProto.BOOL,
    }
    return [
        helper.make_tensor_value_info(spec.name, types[spec.dtype], spec.shape) for spec in specs
    ]
