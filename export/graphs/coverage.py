"""Record what each linear, attention, cache and table of an export is computed in.

Read from the nodes, not from the options, so that it says what is in the file.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

import onnx_ir as ir

from ...quant.graph.joined_names import AS_STORED, split_joined
from ...runtime.bundle.manifest import CoverageEntry
from .decoder import EMBEDDINGS
from .vision import PATCH_WEIGHT

ALWAYS_FLOAT = "export keeps it float"
BY_OPTION = "weights option"


def list_coverage(
    models: Mapping[str, ir.Model], precision: Mapping[str, str], carried: Container[str] = ()
) -> tuple[CoverageEntry, ...]:
    """Every linear and attention of every graph in the order they run, and the table.

    Args:
        models: the manifest's name of a graph -> the graph.
        precision: checkpoint tensor -> how it is stored, the embedding table's included.
        carried: layers that keep the form in which the checkpoint has packed them.
    """
    entries = [entry for name in models for entry in _cover(name, models[name], precision, carried)]
    table = EMBEDDINGS.removesuffix(".weight")
    return (*entries, CoverageEntry(table, "table", None, precision[EMBEDDINGS], AS_STORED))


def _cover(
    graph: str, model: ir.Model, precision: Mapping[str, str], carried: Container[str]
) -> Iterator[CoverageEntry]:
    for node in model.graph:
        if node.op_type in ("Gemm", "MatMulNBits"):
            weight = _find_weight(node)
            first = split_joined(weight.removesuffix(".weight"))[0]
            reason = ALWAYS_FLOAT if first == PATCH_WEIGHT else BY_OPTION
            reason = AS_STORED if first.removesuffix(".weight") in carried else reason
            name = weight.removesuffix(".weight")
            yield CoverageEntry(name, "linear", graph, precision[first], reason)
        elif node.op_type in ("MultiHeadAttention", "GroupQueryAttention"):
            layer = _find_layer(node)
            yield CoverageEntry(f"{layer}.products", "attention", graph, "float32", ALWAYS_FLOAT)
            if node.op_type == "GroupQueryAttention":
                yield CoverageEntry(f"{layer}.cache", "kv_cache", graph, "float32", ALWAYS_FLOAT)


def _find_weight(node: ir.Node) -> str:
    """Name of the checkpoint tensors behind a linear's matrix: 'a.q_proj+k_proj.weight'."""
    value = node.inputs[1]
    assert value is not None  # both operators have a matrix
    if (cast := value.producer()) is not None:  # float16 weights are cast once, at load
        value = cast.inputs[0]
        assert value is not None
    name = str(value.name)
    for suffix in (".packed", ".int8", ".fp8"):
        name = name.removesuffix(suffix)
    # One patch embedding for pictures and one for frame pairs, each named by its size
    return PATCH_WEIGHT if name.startswith(f"{PATCH_WEIGHT}.") else name


def _find_layer(node: ir.Node) -> str:
    """'/model/layers.0/attn/GroupQueryAttention' -> 'model.layers.0.self_attn'."""
    part, layer, _, _ = str(node.name).removeprefix("/").split("/")
    return f"{part}.{layer}.{'attn' if part == 'visual' else 'self_attn'}"
