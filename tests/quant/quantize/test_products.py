"""What calibration looks at beside the linear layers."""

import pytest

from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.quantize.products import list_observed, name_cache, name_factor
from vlmedge.quant.recipe.recipe import AttentionRecipe, CacheRecipe, Recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

CACHE = Recipe("x", kv_cache=CacheRecipe("int8-channel"))
ATTENTION = Recipe("x", attention=AttentionRecipe("fp8"))


@pytest.fixture(scope="module")
def graphs(make_bundle):
    bundle = make_bundle("tiny").bundle
    manifest = read_manifest(bundle)
    return {name: read_graph(bundle, manifest, name).graph for name in manifest.graphs}


def test_nothing_is_looked_at_that_stays_float(graphs):
    for graph in graphs.values():
        assert list_observed(graph, Recipe("x")) == {}
    assert list_observed(graphs["vision"], CACHE) == {}
    assert list_observed(graphs["decoder"], ATTENTION) == {}


def test_keys_are_seen_as_they_are_cached_behind_their_rotation(graphs):
    observed = list_observed(graphs["decoder"], CACHE)
    assert list(observed) == ["model.layers.0", "model.layers.1"]
    makers = {value: node for node in graphs["decoder"].node for value in node.output}
    for stage, values in observed.items():
        key, value = values[name_cache(stage, "key")], values[name_cache(stage, "value")]
        assert makers[key].name == f"/{stage.replace('.', '/', 1)}/attn/k_rotary/RotaryEmbedding"
        assert (makers[value].op_type, list(makers[value].output).index(value)) == ("Split", 2)


@pytest.mark.parametrize("graph", ["vision", "vision_video"])
def test_factors_of_the_vits_products_are_what_its_attention_takes(graphs, graph):
    observed = list_observed(graphs[graph], ATTENTION)
    assert list(observed) == ["visual.blocks.0", "visual.blocks.1"]
    attentions = [node for node in graphs[graph].node if node.op_type == "MultiHeadAttention"]
    for (stage, values), node in zip(observed.items(), attentions, strict=True):
        names = [name_factor(stage, factor) for factor in ("query", "key", "value")]
        assert list(values) == names
        assert list(values.values()) == list(node.input[:3])


def test_names_are_those_of_the_manifest_with_the_part_behind():
    assert name_cache("model.layers.3", "key") == "model.layers.3.self_attn.cache.key"
    assert name_factor("visual.blocks.3", "value") == "visual.blocks.3.attn.products.value"
