"""8-bit products don't saturate, whatever the CPU's instructions are."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlmedge.runtime.backends.ort import exact_products
from vlmedge.runtime.backends.ort.exact_products import make_entries, saturates

PRECISE, KEEP_QDQ = "session.x64quantprecision", "session.disable_quant_qdq"
IN, OUT, BLOCK = 64, 16, 32


def make_graph(*, rounds: bool = True, blocks: bool = False) -> bytes:
    """x float32[N, 64] through int8 weights, each of the largest magnitude."""
    codes = np.full((OUT, IN), 127, np.int8)
    scale_shape = (OUT, IN // BLOCK) if blocks else (OUT,)
    tensors = {
        "codes": codes,
        "scales": np.ones(scale_shape, np.float32),
        "x_scale": np.ones((), np.float32),
        "x_zero_point": np.zeros((), np.int8),
    }
    attributes = {"axis": 1, "block_size": BLOCK} if blocks else {"axis": 0}
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], **attributes),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
    ]
    x = "x"
    if rounds:
        pair = ["x_scale", "x_zero_point"]
        nodes += [
            helper.make_node("QuantizeLinear", ["x", *pair], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", *pair], ["xd"]),
        ]
        x = "xd"
    nodes.append(helper.make_node("MatMul", [x, "wt"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", OUT])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def set_cpu(monkeypatch, tmp_path):
    """set_cpu(machine, flags): what the machine says of its CPU; None: nothing."""

    def set_cpu(machine: str, flags: str | None) -> None:
        path = tmp_path / "cpuinfo"
        if flags is not None:
            path.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
        monkeypatch.setattr(exact_products, "CPU_INFO", path)
        monkeypatch.setattr(exact_products.platform, "machine", lambda: machine)
        saturates.cache_clear()

    yield set_cpu
    monkeypatch.undo()
    saturates.cache_clear()


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx avx2 fma", True),
        ("x86_64", "avx2 avx512f avx512bw", True),
        ("x86_64", "avx2 avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("AMD64", None, True),
        ("aarch64", "asimd", False),
        ("arm64", None, False),
    ],
)
def test_cpus_without_vnni_are_known_by_their_flags(set_cpu, machine, flags, expected):
    set_cpu(machine, flags)
    assert saturates() is expected


@pytest.mark.parametrize(
    ("rounds", "blocks", "keep_qdq", "expected"),
    [
        (True, False, False, {PRECISE: "1"}),
        (True, True, False, {KEEP_QDQ: "1"}),
        (False, True, False, {}),
        (False, False, False, {}),
        (True, False, True, {KEEP_QDQ: "1"}),
    ],
)
def test_each_graph_gets_the_options_that_fit_it(set_cpu, rounds, blocks, keep_qdq, expected):
    set_cpu("x86_64", "avx2")
    assert make_entries(make_graph(rounds=rounds, blocks=blocks), keep_qdq=keep_qdq) == expected


def test_with_vnni_no_graph_is_read(set_cpu, tmp_path):
    set_cpu("x86_64", "avx2 avx_vnni")
    assert make_entries(make_graph(), keep_qdq=False) == {}
    assert make_entries(tmp_path / "absent.onnx", keep_qdq=False) == {}


@pytest.mark.parametrize("cut", [0, 1, 10, 100])
def test_a_damaged_graph_is_left_to_onnx_runtime(set_cpu, cut, tmp_path):
    set_cpu("x86_64", "avx2")
    path = tmp_path / "cut.onnx"
    path.write_bytes(make_graph()[:cut])
    assert make_entries(path, keep_qdq=False) == {}


@pytest.mark.parametrize("blocks", [False, True])
def test_products_of_the_largest_codes_are_exact(blocks):
    """127 x 127 twice is over 32,767: in 16 bits it saturates. By this machine's own CPU."""
    data = make_graph(blocks=blocks)
    options = ort.SessionOptions()
    for key, value in make_entries(data, keep_qdq=False).items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(data, options, ["CPUExecutionProvider"])
    x = np.full((3, IN), 127, np.float32)
    assert np.array_equal(session.run(None, {"x": x})[0], np.full((3, OUT), 127 * 127 * IN))
