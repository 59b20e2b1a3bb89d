"""Layers are found and cut out of graphs of every format; numpy is the oracle."""

import numpy as np
import onnx
import pytest

from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.layer_nodes import find_layers, open_layer, read_matrix
from vlmedge.quant.graph.linears import GraphWeights, list_linears
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LinearRecipe, Recipe
from vlmedge.runtime import BundleError
from vlmedge.runtime.bundle.manifest_file import read_manifest

# format -> largest relative error of one layer of normal weights on normal rows
FORMATS = {
    "float": (LinearRecipe(), 1e-5),
    "int8-dynamic": (LinearRecipe("int8-dynamic"), 0.02),
    "int8-weight": (LinearRecipe("int8-weight", block_size=32), 0.02),
    "int4-weight": (LinearRecipe("int4-weight", block_size=16), 0.2),
    "int8-weight qdq": (LinearRecipe("int8-weight", block_size=32, layout="qdq"), 0.02),
    "int4-weight qdq": (LinearRecipe("int4-weight", block_size=64, layout="qdq"), 0.2),
}
NAMES = [
    "visual.blocks.1.attn.qkv",
    "visual.merger.mlp.2",
    "model.layers.0.self_attn.q_proj+k_proj+v_proj",
    "model.layers.1.mlp.down_proj",
]


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module", params=[*FORMATS, "export int8", "export int4", "export fp16"])
def quantized(request, source, make_bundle, tmp_path_factory):
    """(bundle, largest error)."""
    if request.param.startswith("export"):
        weights = request.param.split()[1]
        limit = {"int8": 0.02, "int4": 0.2, "fp16": 1e-3}[weights]
        return make_bundle("tiny", weights).bundle, limit
    recipe, limit = FORMATS[request.param]
    target = tmp_path_factory.mktemp("layers") / "bundle"
    quantize_bundle(source, target, Recipe("r", vision=recipe, decoder=recipe), num_threads=1)
    return target, limit


def list_names(bundle, graph):
    coverage = read_manifest(bundle).coverage
    return [c.name for c in coverage if (c.graph, c.kind) == (graph, "linear")]


@pytest.mark.parametrize("graph", ["vision", "vision_video", "decoder"])
def test_every_linear_layer_that_the_manifest_names_is_found(quantized, graph):
    bundle, _ = quantized
    model = read_graph(bundle, read_manifest(bundle), graph)
    names = list_names(bundle, graph)
    found = find_layers(model.graph, names)
    assert list(found) == names
    for name, layer in found.items():
        assert layer.linear.name == name
        assert layer.linear.weight == f"{name}.weight"


def test_the_layers_of_a_float_graph_are_those_that_quantization_lists(source):
    for graph in ("vision", "decoder"):
        model = read_graph(source, read_manifest(source), graph)
        for linear in list_linears(model.graph):
            found = find_layers(model.graph, [linear.name])[linear.name].linear
            for field in ("stage", "input", "output", "in_features", "out_features"):
                assert getattr(found, field) == getattr(linear, field), field


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_runs_alone_and_does_what_its_matrix_says(quantized, source, name):
    bundle, limit = quantized
    graph = "vision" if name.startswith("visual") else "decoder"
    original = read_graph(source, read_manifest(source), graph)
    linear = next(x for x in list_linears(original.graph) if x.name == name)
    weights = GraphWeights(source, original)
    matrix = weights.read(linear.weight)
    bias = weights.read(linear.bias) if linear.bias else 0
    rows = np.random.default_rng(0).standard_normal((40, linear.in_features), np.float32)

    model = read_graph(bundle, read_manifest(bundle), graph)
    layer = find_layers(model.graph, [name])[name]
    session = open_layer(model, bundle, layer, num_threads=1)
    (got,) = session.run(None, {layer.linear.input: rows})
    stood_for = read_matrix(model, bundle, layer)
    needed = rows @ matrix.T
    scale = np.linalg.norm(needed)
    assert np.linalg.norm(got - bias - needed) <= limit * scale
    assert stood_for.dtype == np.float32
    assert np.linalg.norm(stood_for - matrix) <= limit * np.linalg.norm(matrix)
    # What is left beside the matrix' own rounding is the rounding of activations
    assert np.linalg.norm(got - bias - rows @ stood_for.T) <= 0.02 * scale


def test_layers_that_a_graph_lacks_are_left_out(source):
    model = read_graph(source, read_manifest(source), "decoder")
    assert find_layers(model.graph, ["visual.blocks.0.attn.qkv", "lm_head"]).keys() == {"lm_head"}


def test_a_layer_of_two_inputs_is_an_error(source):
    model = read_graph(source, read_manifest(source), "decoder")
    node = next(node for node in model.graph.node if node.name == "/lm_head/MatMul")
    extra = onnx.helper.make_node("Add", ["inputs_embeds", node.output[0]], ["sum"], "/lm_head/Add")
    model.graph.node.append(extra)
    with pytest.raises(BundleError, match="layer lm_head has 2 inputs"):
        find_layers(model.graph, ["lm_head"])
