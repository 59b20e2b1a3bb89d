"""What a layer costs: bytes as a bundle has them, and time that grows with the work."""

import pytest

from vlmedge.quant.auto.cost import CACHE_TOKENS, Costs
from vlmedge.quant.auto.ladders import Ladders
from vlmedge.quant.graph.feeds import make_prompts
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

RECIPE = """name = "r"
[decoder]
format = "int4-weight"
block_size = 32
[kv_cache]
format = "int8-tensor"
"""
LAYER = "model.layers.0.mlp.gate_proj+up_proj"  # 2 * 96 rows of 64 in the tiny model


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def make_costs(request, make_bundle, questions, tmp_path_factory):
    source = make_bundle("tiny", request.param).bundle
    manifest = read_manifest(source)
    work = tmp_path_factory.mktemp("work")
    ladders = Ladders(source, manifest, parse_recipe(RECIPE, "test"), questions, work, 1)
    ladders.climb()
    prompts = make_prompts(source, manifest, questions.examples)
    item = 4 if request.param == "fp32" else 2
    return lambda kind: (Costs(source, manifest, ladders.mixer, prompts, kind, 1), item)


def test_bits_are_those_of_codes_and_scales(make_costs):
    costs, item = make_costs("bits")
    assert costs.of(LAYER, "float") == 192 * 64 * item
    assert costs.of(LAYER, "int8-weight") == 192 * 64 + 192 * 2 * 4
    assert costs.of(LAYER, "int4-weight") == 192 * 32 + 192 * 2 * 4


def test_a_cache_costs_the_bytes_of_its_tokens_and_a_table_its_own(make_costs):
    costs, _ = make_costs("bits")
    cache = "model.layers.1.self_attn.cache"
    values = 2 * 2 * 16 * CACHE_TOKENS  # keys and values, 2 heads of 16
    assert costs.of(cache, "int8-tensor") == costs.of(cache, "int8-channel") == values
    assert costs.of(cache, "float") == 4 * values
    assert costs.of("model.embed_tokens", "int8") == 320 * 64
    assert costs.of("model.embed_tokens", "lm_head") == 0


def test_time_is_measured_of_linears_in_every_format(make_costs):
    costs, _ = make_costs("ms")
    for format in ("float", "int8-weight", "int4-weight"):
        assert 0 < costs.of(LAYER, format) < 1000
    assert costs.of("model.layers.1.self_attn.cache", "float") == 0
    assert costs.of(LAYER, "float") == costs.of(LAYER, "float")  # measured once
