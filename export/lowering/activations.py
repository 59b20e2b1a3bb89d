"""QuickGELU, SiLU and GELU in standard operators."""

from __future__ import annotations

import math

import numpy as np
import onnx

from .context import Lowering, read_attributes


def lower_quick_gelu(lowering: Lowering, node: onnx.NodeProto) -> None:
    """X * sigmoid(alpha * x); SiLU is the one with alpha 1."""
    e, x = lowering.emitter, lowering.value(node.input[0])
    alpha = read_attributes(node)["alpha"]
    gate = x
    if alpha != 1:
        factor = e.constant("quick_gelu_alpha", np.array(alpha, np.float32), e.types[x])
        gate = e.op("Mul", [x, factor], f"{node.name}/Scale")
    gate = e.op("Sigmoid", [gate], f"{node.name}/Sigmoid")
    e.op("Mul", [x, gate], node.name, output=node.output[0])


def lower_gelu(lowering: Lowering, node: onnx.NodeProto) -> None:
    """X / 2 * (1 + erf(x / sqrt(2))) in float32: the merger's, on a quarter of the tokens."""
    e, name = lowering.emitter, node.name
    x = e.cast(lowering.value(node.input[0]), "float32")
    constants = {"gelu_root": 1 / math.sqrt(2), "gelu_one": 1.0, "gelu_half": 0.5}
    root, one, half = (e.constant(k, np.array(v, np.float32)) for k, v in constants.items())
    share = e.op("Erf", [e.op("Mul", [x, root], f"{name}/Scale")], f"{name}/Erf")
    share = e.op("Add", [share, one], f"{name}/Add")
    x = e.op("Mul", [e.op("Mul", [x, half], f"{name}/Half"), share], f"{name}/Mul")
    lowering.values[node.output[0]] = e.cast(x, e.compute)
