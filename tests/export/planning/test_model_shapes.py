"""Layers of a config.json: names as the graphs have them, numbers as checkpoints are counted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.checkpoint.config import ModelSpec
from vlmedge.export.checkpoint.rope import RopeSpec
from vlmedge.export.checkpoint.shapes import expected_shapes
from vlmedge.export.planning.model_shapes import Matrix, make_shapes
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.linears import list_linears
from vlmedge.runtime.bundle.manifest import DecoderSpec, TokenIds, VisionSpec
from vlmedge.runtime.bundle.manifest_file import read_manifest

# Counted on transformers' modules with meta tensors; a tied lm_head counts once.
PARAMETERS = {"2b": 2_208_985_600, "7b": 8_291_375_616, "72b": 73_405_560_320}
VISUAL = {"2b": 665_271_296, "7b": 675_759_104, "72b": 699_356_672}


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_those_of_the_published_models(model, size):
    found = model(size)
    assert found.shapes.count_parameters(tied=found.tied_lm_head) == PARAMETERS[size]


@pytest.mark.parametrize("size", VISUAL)
def test_the_vit_has_its_published_parameters(model, size):
    shapes = model(size).shapes
    total = shapes.vision_width * shapes.frame_patch_size * shapes.frames_per_patch
    for layer in shapes.vision:
        if isinstance(layer, Matrix):
            total += layer.num_weights + layer.has_bias * layer.out_features
        else:
            total += getattr(layer, "size", 0)
    assert total == VISUAL[size]


def test_matrices_have_the_names_sizes_and_order_of_the_graphs(make_bundle, read_shapes):
    for size in ("tiny", "tiny-7b"):
        made = make_bundle(size)
        manifest = read_manifest(made.bundle)
        linears = [
            (linear.name, linear.out_features, linear.in_features, linear.bias is not None)
            for graph in ("vision", "decoder")
            for linear in list_linears(read_graph(made.bundle, manifest, graph).graph)
        ]
        matrices = read_shapes(made.checkpoint).matrices
        assert [(m.name, m.out_features, m.in_features, m.has_bias) for m in matrices] == linears


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 99)
)
def test_the_sum_is_that_of_the_checkpoints_tensors(depth, num_layers, kv_heads, groups, width):
    heads = kv_heads * groups
    vision = VisionSpec(depth, 8 * width, 2, 14, 2, 2)
    decoder = DecoderSpec(num_layers, heads * 16, heads, kv_heads, 16, 300 + width, 1024)
    tokens = TokenIds(1, 2, 3, 4, (5,), 5)
    spec = ModelSpec(
        vision,
        decoder,
        tokens,
        32 * width,
        7 * width,
        1e-6,
        RopeSpec(1e6, (2, 3, 3)),
        tied_lm_head=False,
    )
    shapes = make_shapes(vision, decoder, spec.vision_mlp_size, spec.decoder_mlp_size)
    tensors = expected_shapes(spec)
    assert shapes.count_parameters(tied=False) == sum(map(math.prod, tensors.values()))


def test_the_cache_is_28_kib_a_token_at_2b(model):
    shapes = model("2b").shapes
    assert shapes.cache_bytes(1, 1, 2) == 28_672
    assert shapes.cache_bytes(16_384, 1, 2) == 448 << 20
    assert shapes.cache_bytes(32_768, 2, 2) == 2 * (896 << 20)
