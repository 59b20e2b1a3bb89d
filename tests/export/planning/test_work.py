"""FLOPs and bytes: those that were counted by hand and by others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.planning.precision import LayerPrecision, ModelPrecision
from vlmedge.export.planning.weight_bytes import tensorrt_rules
from vlmedge.export.planning.work import (
    Call,
    Costing,
    Work,
    decode_call,
    list_calls,
    list_decoder,
    list_vision,
    rate_of,
    sum_bytes,
    sum_flops,
)


@pytest.fixture(scope="module")
def costing(model):
    """The 2B in bfloat16."""
    return Costing(model("2b").shapes, ModelPrecision(), tensorrt_rules("bfloat16"))


@pytest.mark.parametrize(
    ("side", "published"),
    [(112, 82.5e9), (224, 338e9), (448, 1.48e12), (672, 3.8e12), (1344, 25.7e12)],
)
def test_the_vit_has_the_published_flops(costing, side, published):
    patches = (side // 14) ** 2
    assert sum_flops(list_vision(costing, patches, 1, 2)) == pytest.approx(published, rel=0.01)


@given(patches=st.integers(1, 5000), slices=st.integers(1, 4))
def test_the_vit_has_the_flops_of_the_formula(costing, patches, slices):
    """32 blocks of 12 D^2, patches of 1176 values, 2 N^2 D a block, 4 patches to a token."""
    patches *= 4
    width = 1280
    linear = 32 * 12 * width**2 * patches + 1176 * width * patches
    merger = patches // 4 * (5120**2 + 5120 * 1536)
    attention = 2 * 32 * width * patches**2
    wanted = 2 * (linear + merger + attention) * slices
    assert sum_flops(list_vision(costing, patches, slices, 2)) == wanted
    # A picture's two frames are one: half of the embedding
    half = 2 * 588 * width * patches * slices
    assert sum_flops(list_vision(costing, patches, slices, 1)) == wanted - half


def test_linear_and_attention_split_as_published_at_6084_patches(costing):
    work = list_vision(costing, 6084, 1, 1)
    attention = sum_flops(w for w in work if w.name.endswith("products"))
    linear = sum_flops(work) - attention
    assert attention == pytest.approx(6.1e12, rel=0.01)
    assert linear == pytest.approx(7.7e12, rel=0.01)


@pytest.mark.parametrize(("tokens", "published"), [(288, 0.76e12), (1344, 3.7e12)])
def test_a_prompt_has_the_published_flops(costing, tokens, published):
    """Published with causal attention: half of the keys on average."""
    work = list_decoder(costing, Call(1, tokens, tokens // 2))
    assert sum_flops(work) == pytest.approx(published, rel=0.05)


def test_a_token_at_1k_context_has_the_published_flops(costing):
    assert sum_flops(list_decoder(costing, Call(1, 1, 1024))) == pytest.approx(3.26e9, rel=0.005)


@given(st.integers(1, 2000), st.integers(1, 30000), st.integers(1, 4))
def test_the_decoder_has_the_flops_of_the_formula(costing, new, attended, batch):
    """1.310 G weights a token and the head once; the last layer goes on with one row only."""
    layer = 1536 * 1536 + 3 * 1536 * 8960
    all_layers = 27 * (layer + 2048 * 1536) + 2048 * 1536
    macs = batch * (new * all_layers + layer + 151936 * 1536)
    macs += batch * 2 * 28 * 1536 * new * attended
    assert sum_flops(list_decoder(costing, Call(batch, new, attended))) == 2 * macs


def test_a_token_moves_the_weights_and_the_cache(costing):
    """1,543,714,304 parameters at two bytes, less norms and biases; 28 KiB of cache a token."""
    work = list_decoder(costing, Call(1, 1, 1000))
    weights = sum(piece.weight_bytes for piece in work)
    assert weights == 2 * (1_543_714_304 - 57 * 1536 - 28 * 2048)
    cache = sum(p.moved_bytes for p in work if p.name.endswith("products"))
    queries = 28 * 2 * 2 * 1536  # in and out
    assert cache == 1000 * 28_672 + queries


def test_a_quantized_layer_reads_fewer_bytes_and_computes_at_its_rate(model):
    layers = {"lm_head": "int8 block 128", "model.layers.0.mlp.down_proj": "int8 static"}
    precision = ModelPrecision(layers=layers)
    costing = Costing(model("2b").shapes, precision, tensorrt_rules("bfloat16"))
    work = {piece.name: piece for piece in list_decoder(costing, Call(1, 1, 1))}
    assert work["lm_head"].weight_bytes == 151936 * (1536 + 2 * 12)
    assert work["lm_head"].rate == "half"
    assert work["model.layers.0.mlp.down_proj"].rate == "int8"
    assert work["model.layers.1.mlp.down_proj"].rate == "half"


@pytest.mark.parametrize(
    ("how", "rate"),
    [
        (LayerPrecision("static", 8), "int8"),
        (LayerPrecision("dynamic", 8), "int8"),
        (LayerPrecision("fp8", 8), "fp8"),
        (LayerPrecision("weights", 4, 64), "half"),
        (LayerPrecision("bfloat16", 16), "half"),
        (LayerPrecision("float32", 32), "single"),
    ],
)
def test_weights_alone_do_not_change_the_rate(how, rate):
    assert rate_of(how, "half") == rate


def test_float32_graphs_multiply_in_single_precision(model):
    costing = Costing(model("2b").shapes, ModelPrecision(), tensorrt_rules("float32"))
    rates = {piece.rate for piece in list_decoder(costing, Call(1, 8, 8)) if piece.flops}
    assert rates == {"single"}


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 6000))
def test_calls_cover_the_prompt_once(prompt, chunk, room):
    capacity = prompt + room
    for in_place in (True, False):
        calls = list_calls(prompt, capacity, chunk, in_place=in_place)
        assert sum(call.new_tokens for call in calls) == prompt
        assert all(0 < call.new_tokens <= chunk for call in calls)
        if in_place:
            assert {call.attended for call in calls} == {capacity}
        else:  # an empty cache is shown as one of a single token
            assert calls[0].attended == calls[0].new_tokens + 1
            assert all(c.attended == capacity + c.new_tokens for c in calls[1:])
    assert decode_call(capacity, in_place=True).attended == capacity
    assert decode_call(capacity, in_place=False).attended == capacity + 1


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 500))
def test_more_patches_or_tokens_are_never_less_work(costing, patches, attended, more):
    few, many = list_vision(costing, patches, 1, 1), list_vision(costing, patches + more, 1, 1)
    assert sum_flops(few) < sum_flops(many)
    assert sum_bytes(few) < sum_bytes(many)
    short, long = (list_decoder(costing, Call(1, 1, n)) for n in (attended, attended + more))
    assert sum_flops(short) < sum_flops(long)
    assert sum_bytes(short) < sum_bytes(long)


def test_scores_that_are_not_fused_move_and_are_launched(model):
    shapes, rules = model("2b").shapes, tensorrt_rules("bfloat16")
    fused = Costing(shapes, ModelPrecision(), rules)
    written = Costing(shapes, ModelPrecision(), rules, fused_vision=False)

    def attention(costing: Costing) -> Work:
        return next(w for w in list_vision(costing, 1000, 1, 1) if w.name.endswith("products"))

    more = attention(written).moved_bytes - attention(fused).moved_bytes
    assert more == 6 * 2 * 16 * 1000**2
    assert attention(written).flops == attention(fused).flops
    assert (attention(fused).launches, attention(written).launches) == (1, 3)
