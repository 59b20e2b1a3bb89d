"""A bundle put together from layers that were quantized before is the bundle of its recipe."""

import dataclasses

from vlmedge.quant.auto.bundle import write_assembled
from vlmedge.quant.auto.ladders import Ladders
from vlmedge.quant.quantize.plan import make_plan
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.recipe import LayerException
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

# Everything at once that one layer's quantization changes in another, or in the rest of the graph
RECIPE = """name = "all"
[vision]
format = "int8"
[decoder]
format = "int8"
method = "gptq"
[lm_head]
format = "int8-weight"
block_size = 32
[embedding]
format = "lm_head"
[kv_cache]
format = "int8-channel"
[attention]
vision = "fp8"
"""
# Layers behind which others migrate, and such as migrate into others
RETURNED = {
    "visual.blocks.0.attn.qkv": "int8-weight",
    "visual.blocks.1.attn.proj": "float",
    "model.layers.0.mlp.gate_proj+up_proj": "float",
    "model.layers.1.mlp.down_proj": "int8-weight",
}


def test_it_is_the_same_to_the_last_bit(make_bundle, questions, tmp_path):
    source = make_bundle("tiny", "fp16").bundle
    manifest, recipe = read_manifest(source), parse_recipe(RECIPE, "test")
    ladders = Ladders(source, manifest, recipe, questions, tmp_path / "work", 1)
    ladders.climb()
    given_back = tuple(LayerException(name, f, "auto") for name, f in RETURNED.items())
    for layers in ((), given_back):
        changed = dataclasses.replace(recipe, layers=layers)
        plan = make_plan(changed, ladders.linears)
        write_assembled(source, manifest, ladders.mixer, plan, questions, tmp_path / "assembled")
        wanted = quantize_bundle(source, tmp_path / "made", changed, questions, num_threads=1)
        assert read_manifest(tmp_path / "assembled") == wanted.manifest  # with a hash of each file
