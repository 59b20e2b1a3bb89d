"""Which node belongs to which layer, and how layers are shared out."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from vlmedge.export.engines.split_plan import balance, plan_graph


def make_graph(nodes, weights=()):
    made = [helper.make_node(op, inputs, outputs, name) for op, inputs, outputs, name in nodes]
    tensors = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    return helper.make_graph(made, "g", [], [], tensors)


GRAPH = make_graph(
    [
        ("Cos", ["ids"], ["table"], "/model/rotary/Cos"),
        ("Sin", ["spare"], ["unread"], "/model/rotary/Sin"),
        ("Mul", ["x", "table"], ["a"], "/model/layers.0/attn"),
        ("Add", ["a", "w0"], ["b"], "/model/layers.0/mlp"),
        ("Cast", ["b"], ["b16"], "/b/Cast_float16"),
        ("Mul", ["b16", "table"], ["c"], "/model/layers.1/attn"),
        ("Add", ["c", "a"], ["d"], "/model/layers.1/mlp"),
        ("Mul", ["d", "w1"], ["n"], "/model/norm"),
        ("MatMul", ["n", "wh"], ["l"], "/lm_head/MatMul"),
        ("Cast", ["l"], ["logits"], "/logits/Cast_float32"),
    ],
    {
        "w0": np.zeros(4, np.float32),
        "w1": np.zeros(4, np.float16),
        "wh": np.zeros((4, 8), np.int8),
        "unread_weight": np.zeros(1000, np.float32),
    },
)


def test_a_node_without_a_layers_name_belongs_to_the_latest_of_its_inputs():
    assert plan_graph(GRAPH).stages == (None, None, 0, 0, 0, 1, 1, 1, 2, 2)


def test_the_norm_before_a_layer_is_a_part_of_it():
    nodes = [
        ("Abs", ["x"], ["a"], "/model/layers.0/mlp/Abs"),
        ("Abs", ["a"], ["b"], "/model/layers.1.input_layernorm/SkipRMSNorm"),
        ("Abs", ["b"], ["c"], "/lm_head"),
    ]
    assert plan_graph(make_graph(nodes)).stages == (0, 1, 2)


def test_tables_are_copied_into_each_part_that_reads_them():
    plan = plan_graph(GRAPH)
    assert plan.list_nodes(range(0, 1)) == [0, 2, 3, 4]
    assert plan.list_nodes(range(1, 2)) == [0, 5, 6, 7]
    assert plan.list_nodes(range(2, 3)) == [8, 9]


def test_what_arrives_and_what_leaves_agree():
    plan = plan_graph(GRAPH)
    assert plan.list_arriving(range(1, 2)) == ["b16", "a"]
    assert plan.list_leaving(range(0, 1)) == ["b16", "a"]
    assert plan.list_arriving(range(2, 3)) == plan.list_leaving(range(1, 2)) == ["n"]
    assert plan.list_leaving(range(2, 3)) == plan.list_arriving(range(0, 1)) == []
    assert plan.is_before_head("n")
    assert not plan.is_before_head("a")


def test_weights_are_counted_where_they_are_read():
    assert plan_graph(GRAPH).stage_bytes == (16, 8, 32)


def test_four_bit_weights_are_half_a_byte():
    graph = make_graph(
        [("Add", ["x", "w"], ["a"], "/model/layers.0/a"), ("Abs", ["a"], ["l"], "/lm_head")]
    )
    graph.initializer.append(
        onnx.TensorProto(name="w", dims=[3, 5], data_type=onnx.TensorProto.INT4)
    )
    assert plan_graph(graph).stage_bytes == (8, 0)


@pytest.mark.parametrize("name", ["/model/layer.0/x", "layers.0", ""])
def test_a_graph_whose_nodes_do_not_say_their_layer_is_refused(name):
    nodes = [("Abs", ["x"], ["a"], name), ("Abs", ["a"], ["l"], "/lm_head/MatMul")]
    with pytest.raises(ValueError, match=r"0 layers by its nodes' names.*it can't be split"):
        plan_graph(make_graph(nodes))


def test_a_graph_without_a_head_is_refused():
    with pytest.raises(ValueError, match="1 layers by its nodes' names, and no head"):
        plan_graph(make_graph([("Abs", ["x"], ["a"], "/model/layers.0/Abs")]))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.data())
def test_the_largest_part_is_as_small_as_any_way_of_cutting_makes_it(sizes, data):
    num_parts = data.draw(st.integers(1, len(sizes)))
    parts = balance(sizes, num_parts)
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert len(parts) == num_parts
    assert all(len(part) for part in parts)
    best = min(
        max(sum(sizes[a:b]) for a, b in itertools.pairwise((0, *cuts, len(sizes))))
        for cuts in itertools.combinations(range(1, len(sizes)), num_parts - 1)
    )
    assert max(sum(sizes[i] for i in part) for part in parts) == best


def test_layers_of_one_size_are_shared_out_evenly_and_a_heavy_head_makes_the_last_part_short():
    assert [len(part) for part in balance([1] * 28, 4)] == [7, 7, 7, 7]
    lengths = [len(part) for part in balance([1] * 27 + [6], 3)]
    assert lengths[-1] < lengths[0]
