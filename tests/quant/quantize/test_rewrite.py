"""Nodes in the places of others: nothing else moves, nothing unused stays."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlmedge.quant.quantize.linear_nodes import Placed
from vlmedge.quant.quantize.rewrite import drop_unused, rewrite

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
two (float[N, 4] x) => (float[N, 4] y)
{
  half = Cast<to = 1>(a)
  h = Gemm<transB = 1>(x, half, bias)
  y = Gemm<transB = 1>(h, b)
}"""
A = np.arange(16, dtype=np.float16).reshape(4, 4) / 8
B = np.eye(4, dtype=np.float32)[::-1].copy()
BIAS = np.arange(4, dtype=np.float32)


@pytest.fixture
def model():
    model = onnx.parser.parse_model(TEXT)
    for node, name in zip(model.graph.node, ("cast", "first", "second"), strict=True):
        node.name = name
    for name, array in (("a", A), ("b", B), ("bias", BIAS), ("unused", BIAS)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def make_placed(name, inputs, output):
    """A layer that doubles: two nodes, one new initializer."""
    nodes = [
        onnx.helper.make_node("Mul", [inputs, "two"], [f"{name}/twice"], f"{name}/Mul"),
        onnx.helper.make_node("Identity", [f"{name}/twice"], [output], f"{name}/Identity"),
    ]
    return Placed(nodes, {"two": np.float32(2).reshape(()), "superfluous": BIAS})


def run(rewritten, x):
    whole = onnx.ModelProto()
    whole.CopyFrom(rewritten.model)
    for name, array in rewritten.tensors.items():
        whole.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(whole, full_check=True)
    return ort.InferenceSession(whole.SerializeToString()).run(None, {"x": x})[0]


X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def test_nothing_changed_is_the_same_graph_without_what_nobody_uses(model):
    rewritten = rewrite(model, {}, {})
    assert rewritten.tensors == {}
    assert list(rewritten.model.graph.node) == list(model.graph.node)
    assert [t.name for t in rewritten.model.graph.initializer] == ["a", "b", "bias"]


def test_a_layers_nodes_stand_in_its_place_and_its_own_leftovers_go(model):
    rewritten = rewrite(model, {"first": make_placed("first", "x", "h")}, {})
    assert [n.name for n in rewritten.model.graph.node] == [
        "first/Mul",
        "first/Identity",
        "second",
    ]
    assert [t.name for t in rewritten.model.graph.initializer] == ["b"]
    assert list(rewritten.tensors) == ["two"]
    np.testing.assert_allclose(run(rewritten, X), 2 * X @ B.T)


def test_other_values_take_the_place_of_initializers(model):
    rewritten = rewrite(model, {}, {"bias": BIAS * 3, "b": B * 2, "of another graph": BIAS})
    assert set(rewritten.tensors) == {"bias", "b"}
    assert [t.name for t in rewritten.model.graph.initializer] == ["a"]
    needed = (X @ A.astype(np.float32).T + BIAS * 3) @ (B * 2).T
    np.testing.assert_allclose(run(rewritten, X), needed, rtol=1e-5, atol=1e-5)


def test_a_float16_matrix_stays_one(model):
    rewritten = rewrite(model, {}, {"a": A.astype(np.float32) * 4})
    assert rewritten.tensors["a"].dtype == np.float16
    np.testing.assert_array_equal(rewritten.tensors["a"], A * 4)
    run(rewritten, X)
    with pytest.raises(ValueError, match="a leaves the range of float16"):
        rewrite(model, {}, {"a": A.astype(np.float32) * 1e6})


def test_a_value_that_a_layer_brings_itself_goes_before_a_replaced_one(model):
    placed = make_placed("first", "x", "h")
    placed.tensors["bias"] = BIAS * 7
    placed.nodes[0].input[1] = "bias"
    rewritten = rewrite(model, {"first": placed}, {"bias": BIAS})
    np.testing.assert_array_equal(rewritten.tensors["bias"], BIAS * 7)


def test_the_float_graph_is_left_as_it_is(model):
    before = model.SerializeToString(deterministic=True)
    rewrite(model, {"first": make_placed("first", "x", "h")}, {"b": B * 2})
    assert model.SerializeToString(deterministic=True) == before


def test_what_no_output_depends_on_is_dropped_with_all_that_fed_it():
    nodes = [
        onnx.helper.make_node("Neg", ["x"], ["a"]),
        onnx.helper.make_node("Neg", ["a"], ["b"]),  # feeds nothing
        onnx.helper.make_node("Split", ["x"], ["c", "d"]),
        onnx.helper.make_node("Neg", ["d"], ["y"]),
    ]
    assert drop_unused(nodes, {"y"}) == nodes[2:]
    assert drop_unused(nodes, {"y", "a"}) == [nodes[0], *nodes[2:]]
    assert drop_unused(nodes, set()) == []
