"""The state that rules share while a graph is lowered: both graphs, each value's counterpart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx

from ...runtime.bundle.manifest import CacheMode
from .emitter import FLOATS, Emitter
from .initializers import Initializers
from .targets import Target


@dataclass
class Lowering:
    """One graph on its way.

    Attributes:
        emitter: the graph that is written.
        weights: initializers for it.
        cache: how the decoder's cache is written.
        head_dim: of its attention.
        values: value of the graph that is read -> of the one that is written, where they differ.
        heads: value [batch, tokens, heads * head_dim] -> it as [batch, heads, tokens, head_dim].
        notes: layer -> what became of its precision, and why, where the target forced it.
    """

    emitter: Emitter
    weights: Initializers
    target: Target
    cache: CacheMode
    head_dim: int
    values: dict[str, str] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, str]] = field(default_factory=dict)

    def value(self, name: str) -> str:
        """A value of the graph that is read, in the one that is written."""
        if name in self.heads and name not in self.emitter.types:
            self.join_heads(self.heads[name], name, name)
        return self.values.get(name, name)

    def float_input(self, name: str, dtype: str) -> str:
        """An initializer or a value, as a float of that type."""
        if name in self.weights:
            return self.weights.floats(name, dtype)
        return self.emitter.cast(self.value(name), dtype)

    def split_heads(self, name: str, num_heads: int, node: str) -> str:
        """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
        if name not in self.heads:
            e = self.emitter
            # The size in full: TensorRT fuses attention where it knows it.
            shape = e.integers(0, 0, num_heads, self.head_dim)
            x = e.op("Reshape", [self.value(name), shape], f"{node}/Reshape")
            self.heads[name] = e.op("Transpose", [x], f"{node}/Transpose", perm=[0, 2, 1, 3])
        return self.heads[name]

    def join_heads(self, value: str, node: str, output: str) -> str:
        """[batch, heads, tokens, head_dim] -> [batch, tokens, heads * head_dim]."""
        e = self.emitter
        x = e.op("Transpose", [value], f"{node}/join/Transpose", perm=[0, 2, 1, 3])
        shape = e.integers(0, 0, -1)
        return e.op("Reshape", [x, shape], f"{node}/join/Reshape", output=output)

    def pass_through(self, node: onnx.NodeProto) -> None:
        """A standard operator: the same, its float constants in the type of its values."""
        values = [name for name in node.input if name not in self.weights]
        types = [self.emitter.types[self.value(name)] for name in values]
        floats = [name for name in types if name in FLOATS]
        dtype = floats[0] if floats else self.emitter.compute
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        del changed.input[:]
        is_scaled = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for index, name in enumerate(node.input):
            if name in self.weights:
                if self.weights.type(name) in FLOATS:
                    is_scale = is_scaled and index == 1
                    changed.input.append(self.weights.floats(name, dtype, positive=is_scale))
                else:
                    changed.input.append(self.weights.codes(name))
            elif self.emitter.types[self.value(name)] in FLOATS:
                changed.input.append(self.float_input(name, dtype))
            else:
                changed.input.append(self.value(name))
        self.emitter.add(changed)
        for output in node.output:
            self.emitter.types[output] = self._result_type(changed)

    def _result_type(self, node: onnx.NodeProto) -> str:
        """Of a standard operator: its first input's, but for those that change the type."""
        if node.op_type == "Shape":
            return "int64"
        # A zero point is of the codes' type, a scale of the values'
        typed_by = {"QuantizeLinear": 2, "DequantizeLinear": 1}.get(node.op_type, 0)
        return self.emitter.types[node.input[typed_by]]


def read_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
