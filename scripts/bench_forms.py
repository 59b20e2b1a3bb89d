"""Ways to write a quantized linear layer, timed in ONNX Runtime: python scripts/bench_forms.py.

1024 x 1280 x 3840, the ViT's qkv for a picture of 448x448. Medians; all forms take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnx
from onnx import helper

from vlmedge.quant.rounding.weight_only import pack_rows
from vlmedge.runtime.backends.ort.session import ort

ROWS, SIZE, OUTPUTS = 1024, 1280, 3840
Node = onnx.NodeProto


def make_forms(weight: np.ndarray, bias: np.ndarray, amax: float) -> dict[str, tuple]:
    """Name -> (nodes from x to y, initializers)."""
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    codes = np.rint(weight / scales[:, None]).astype(np.int8)
    packed, block_scales = pack_rows(weight, 8, 128)
    tensors = {
        "weight": weight, "bias": bias, "codes": codes, "scales": scales,
        "step": np.float32(amax / 127), "zero": np.int8(0), "one": np.float32(1),
        "zeros": np.zeros(OUTPUTS, np.int8),  # without them nothing is fused
        "turned": np.ascontiguousarray(codes.T), "packed": packed, "block_scales": block_scales,
        "axis": np.array([1]), "inverse": np.float32(1 / 127),
    }  # fmt: skip
    node = helper.make_node
    pair = [node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "step", "zero"], ["d"])]  # fmt: skip
    matrix = node("DequantizeLinear", ["codes", "scales", "zeros"], ["m"], axis=0)
    row = [
        node("Abs", ["x"], ["magnitude"]),
        node("ReduceMax", ["magnitude", "axis"], ["largest"], keepdims=1),
        node("Mul", ["largest", "inverse"], ["row"]),
        node("Div", ["x", "row"], ["divided"]),
        node("QuantizeLinear", ["divided", "one", "zero"], ["q"]),
    ]
    back = [node("Mul", ["scaled", "row"], ["p"]), node("Add", ["p", "bias"], ["y"])]
    blocks = {"K": SIZE, "N": OUTPUTS, "bits": 8, "block_size": 128, "accuracy_level": 4}
    forms: dict[str, list[Node]] = {
        "float32": [node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)],
        "static, bias inside": [*pair, matrix, node("Gemm", ["d", "m", "bias"], ["y"], transB=1)],
        "static, bias behind": [
            *pair, matrix, node("Gemm", ["d", "m"], ["p"], transB=1),
            node("Add", ["p", "bias"], ["y"]),
        ],
        "by token, MatMulInteger": [
            *row, node("MatMulInteger", ["q", "turned"], ["i"]), node("Cast", ["i"], ["f"], to=1),
            node("Mul", ["f", "scales"], ["scaled"]), *back,
        ],
        "by token, Q/DQ": [
            *row, node("DequantizeLinear", ["q", "one", "zero"], ["d"]), matrix,
            node("Gemm", ["d", "m"], ["scaled"], transB=1), *back,
        ],
        "weights alone, block 128": [
            node("MatMulNBits", ["x", "packed", "block_scales", "", "", "bias"], ["y"],
                 domain="com.microsoft", **blocks),
        ],
    }  # fmt: skip
    return {
        name: (nodes, {n: tensors[n] for node in nodes for n in node.input if n in tensors})
        for name, nodes in forms.items()
    }


def open_form(nodes: list[Node], tensors: dict[str, np.ndarray], threads: int):
    """A session of one form."""
    shapes = {"x": ["rows", SIZE], "y": ["rows", OUTPUTS]}
    values = {n: helper.make_tensor_value_info(n, 1, shape) for n, shape in shapes.items()}
    constants = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items()]
    graph = helper.make_graph(nodes, "form", [values["x"]], [values["y"]], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options)


def main() -> None:
    """Milliseconds and error of each form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    weight = (0.02 * random.standard_normal((OUTPUTS, SIZE))).astype(np.float32)
    bias = random.standard_normal(OUTPUTS).astype(np.float32)
    x = random.standard_normal((ROWS, SIZE)).astype(np.float32)
    forms = make_forms(weight, bias, float(np.abs(x).max()))
    sessions = {name: open_form(*form, args.threads) for name, form in forms.items()}
    wanted = x @ weight.T + bias
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(args.rounds + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"x": x})
            times[name].append(time.perf_counter() - start)
    for name, session in sessions.items():
        got = session.run(None, {"x": x})[0]
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        milliseconds = 1000 * statistics.median(times[name][1:])
        print(f"{name:<28}{milliseconds:7.1f} ms   error {error:.4f}")


if __name__ == "__main__":
    main()
