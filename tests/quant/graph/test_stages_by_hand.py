"""Stages of graphs of two nodes, made by hand for what no bundle has."""

import numpy as np
import onnx
import pytest

from vlmedge.quant.graph.stages import Walk, cut_stages
from vlmedge.runtime import BundleError

SMALL = """<ir_version: 10, opset_import: ["" : 23]>
small (float[N, 2] x) => (float[N, 2] y, float[N, 2] early)
{{ {} }}"""


def name_nodes(text, names):
    """A small model whose nodes have these names."""
    model = onnx.parser.parse_model(SMALL.format(text))
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return model


def make_small_feed():
    return {"x": np.ones((3, 2), np.float32), "position_ids": np.zeros((1, 3), np.int64)}


def test_a_stage_that_onnxruntime_refuses_is_named(tmp_path):
    model = name_nodes("y = NoSuchOperator(x)\n early = Identity(x)", ["/a", "/b"])
    walk = Walk(model, tmp_path, [make_small_feed()])
    with pytest.raises(BundleError, match="onnxruntime refused embed"):
        walk.run_stage(0)


def test_a_stage_that_fails_is_named(tmp_path):
    model = name_nodes("y = MatMul(x, x)\n early = Identity(x)", ["/lm_head/MatMul", "/b"])
    walk = Walk(model, tmp_path, [make_small_feed()])
    walk.run_stage(0)
    with pytest.raises(BundleError, match="stage head failed"):
        walk.run_stage(1)


def test_an_early_output_of_the_graph_is_kept_to_the_end(tmp_path):
    model = name_nodes(
        "early = Add(x, x)\n y = Mul(early, x)", ["/model/layers.0/Add", "/lm_head/Mul"]
    )
    walk = Walk(model, tmp_path, [make_small_feed()])
    for index in range(len(walk.stages)):
        walk.run_stage(index)
    assert set(walk.live[0]) >= {"early", "y"}


def test_layers_out_of_order_are_refused():
    names = ["/model/layers.1/Identity", "/model/layers.0/Identity"]
    model = name_nodes("early = Identity(x)\n y = Identity(early)", names)
    with pytest.raises(BundleError, match=r"layers\.0/Identity needs early of a later layer"):
        cut_stages(model.graph)


def test_layers_are_counted_not_spelt():
    names = [f"/model/layers.{i}/Identity" for i in (10, 2)]
    model = name_nodes("y = Identity(x)\n early = Identity(x)", names)
    assert [stage.name for stage in cut_stages(model.graph)] == [
        "model.layers.2",
        "model.layers.10",
    ]
