"""Norms: in float32, as the reference computes them, whatever the rest of the graph is in.

Squares of the large channels that language models have leave float16's range.
"""

from __future__ import annotations

import numpy as np
import onnx

from .context import Lowering, read_attributes


def lower_layer_norm(lowering: Lowering, node: onnx.NodeProto) -> None:
    """LayerNormalization of what is there already."""
    _norm(lowering, node, lowering.value(node.input[0]), list(node.input[1:]))


def lower_rms_norm(lowering: Lowering, node: onnx.NodeProto) -> None:
    """RMSNormalization of what is there already."""
    _rms(lowering, node, lowering.value(node.input[0]), node.input[1])


def lower_skip_layer_norm(lowering: Lowering, node: onnx.NodeProto) -> None:
    """ONNX Runtime's sum and norm in one -> a sum and a norm."""
    _norm(lowering, node, _add(lowering, node), list(node.input[2:]))


def lower_skip_rms_norm(lowering: Lowering, node: onnx.NodeProto) -> None:
    """ONNX Runtime's sum and norm in one -> a sum and a norm."""
    _rms(lowering, node, _add(lowering, node), node.input[2])


def _add(lowering: Lowering, node: onnx.NodeProto) -> str:
    """The residual sum, which other nodes may want as well."""
    e = lowering.emitter
    output = node.output[-1] if len(node.output) > 1 else None
    x, branch = (lowering.value(name) for name in node.input[:2])
    return e.op("Add", [x, branch], f"{node.name}/Add", output=output)


def _norm(lowering: Lowering, node: onnx.NodeProto, x: str, parameters: list[str]) -> None:
    e = lowering.emitter
    x = e.cast(x, "float32")
    inputs = [x, *(lowering.weights.floats(name, "float32") for name in parameters)]
    epsilon = read_attributes(node)["epsilon"]
    output = _inner(lowering, node)
    x = e.op("LayerNormalization", inputs, node.name, output=output, axis=-1, epsilon=epsilon)
    _finish(lowering, node, x)


def _rms(lowering: Lowering, node: onnx.NodeProto, x: str, weight: str) -> None:
    e, name, output = lowering.emitter, node.name, _inner(lowering, node)
    epsilon = read_attributes(node)["epsilon"]
    x = e.cast(x, "float32")
    scale = lowering.weights.floats(weight, "float32")
    if lowering.target.fused:
        inputs = [x, scale]
        x = e.op("RMSNormalization", inputs, name, output=output, axis=-1, epsilon=epsilon)
        return _finish(lowering, node, x)
    square = e.op("Mul", [x, x], f"{name}/Square")
    mean = e.op("ReduceMean", [square, e.integers(-1)], f"{name}/ReduceMean", keepdims=1)
    small = e.constant("rms_epsilon", np.array(epsilon, np.float32))
    mean = e.op("Add", [mean, small], f"{name}/AddEpsilon")
    root = e.op("Sqrt", [mean], f"{name}/Sqrt")
    x = e.op("Div", [x, root], f"{name}/Div")
    return _finish(lowering, node, e.op("Mul", [x, scale], f"{name}/Mul", output=output))


def _inner(lowering: Lowering, node: onnx.NodeProto) -> str:
    """Name of the float32 result: the final one where no Cast follows."""
    is_final = lowering.emitter.compute == "float32"
    return node.output[0] if is_final else f"{node.name}/float32"


def _finish(lowering: Lowering, node: onnx.NodeProto, x: str) -> None:
    e = lowering.emitter
    if e.compute != "float32":
        e.cast(x, e.compute, output=node.output[0])
