"""Assign each node of a decoder to its layer, and list what crosses between layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import onnx
from onnx import helper

HEAD = "/lm_head"
_LAYER = re.compile(r"/model/layers\.(\d+)[./]")
_HALF_BYTE = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Stages are the layers in order, then the head.

    Attributes:
        nodes: of the graph, in order.
        stages: of each node; None: it belongs to no layer and depends on none.
        producers: value -> index of the node that makes it.
        stage_bytes: of the weights of each stage.
    """

    nodes: Sequence[onnx.NodeProto]
    stages: tuple[int | None, ...]
    producers: dict[str, int]
    stage_bytes: tuple[int, ...]

    def list_nodes(self, part: range) -> list[int]:
        """Indices of a part's nodes, and of those it needs that belong to no layer."""
        chosen = {i for i, stage in enumerate(self.stages) if stage in part}
        waiting = list(chosen)
        while waiting:
            for value in self.nodes[waiting.pop()].input:
                source = self.producers.get(value)
                if source is not None and self.stages[source] is None and source not in chosen:
                    chosen.add(source)
                    waiting.append(source)
        return sorted(chosen)

    def list_arriving(self, part: range) -> list[str]:
        """Values that a part needs of those before it."""
        needed = {value: None for i in self.list_nodes(part) for value in self.nodes[i].input}
        return [value for value in needed if self._stage_of(value) not in (None, *part)]

    def list_leaving(self, part: range) -> list[str]:
        """Values of a part that those after it need."""
        rest = range(part.stop, len(self.stage_bytes))
        return [value for value in self.list_arriving(rest) if self._stage_of(value) in part]

    def is_before_head(self, value: str) -> bool:
        """Whether only the head reads it."""
        readers = {self.stages[i] for i, node in enumerate(self.nodes) if value in node.input}
        return min(stage for stage in readers if stage is not None) == len(self.stage_bytes) - 1

    def _stage_of(self, value: str) -> int | None:
        source = self.producers.get(value)
        return None if source is None else self.stages[source]


def plan_graph(graph: onnx.GraphProto) -> GraphPlan:
    """Find the stage of every node: by its name, or else the latest of its inputs'.

    Raises:
        ValueError: no node is named by a layer or as the head.
    """
    named = [_LAYER.match(node.name) for node in graph.node]
    num_layers = max((int(found[1]) + 1 for found in named if found), default=0)
    producers = {value: i for i, node in enumerate(graph.node) for value in node.output if value}
    stages: list[int | None] = []
    for node, found in zip(graph.node, named, strict=True):
        sources = (producers.get(value) for value in node.input)
        before = [stages[i] for i in sources if i is not None]
        stage = max((each for each in before if each is not None), default=None)
        if found:
            stage = int(found[1])
        elif node.name.startswith(HEAD):
            stage = num_layers
        stages.append(stage)
    if not num_layers or num_layers not in stages:
        raise ValueError(
            f"the graph {graph.name} has {num_layers} layers by its nodes' names, and "
            f"{'a' if num_layers in stages else 'no'} head: it can't be split"
        )
    return GraphPlan(graph.node, tuple(stages), producers, _measure(graph, stages, num_layers + 1))


def balance(sizes: Sequence[int], num_parts: int) -> list[range]:
    """Cut a row of sizes into parts of which the largest is as small as can be.

    Args:
        sizes: at least as many as there are parts.
        num_parts: none of them empty.
    """
    sums = [0, *accumulate(sizes)]
    # best[i]: of the first i sizes in so many parts, the largest part and where the last begins
    best = [(total, 0) for total in sums]
    cuts = []
    for count in range(2, num_parts + 1):
        best = [
            min(
                ((max(best[j][0], sums[i] - sums[j]), j) for j in range(count - 1, i)),
                default=(math.inf, 0),
            )
            for i in range(len(sums))
        ]
        cuts.append([start for _, start in best])
    stop, parts = len(sizes), []
    for starts in reversed(cuts):
        parts.insert(0, range(starts[stop], stop))
        stop = starts[stop]
    return [range(0, stop), *parts]


def _measure(
    graph: onnx.GraphProto, stages: Sequence[int | None], num_stages: int
) -> tuple[int, ...]:
    """Bytes of the initializers that each stage reads."""
    sizes = {tensor.name: _count_bytes(tensor) for tensor in graph.initializer}
    read: list[set[str]] = [set() for _ in range(num_stages)]
    for node, stage in zip(graph.node, stages, strict=True):
        if stage is not None:
            read[stage] |= sizes.keys() & set(node.input)
    return tuple(sum(sizes[name] for name in names) for names in read)


def _count_bytes(tensor: onnx.TensorProto) -> int:
    num_elements = math.prod(tensor.dims)
    if tensor.data_type in _HALF_BYTE:
        return -(-num_elements // 2)
    return num_elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
