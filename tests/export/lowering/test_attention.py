"""Attention and rotation by their definitions, and at the ends of float16's range."""

import numpy as np
import onnx
import pytest

from vlmedge.export.lowering.attention import FAR_BELOW

TARGETS = ("jetpack-6.2", "jetpack-7.2")
HEADS, HEAD_DIM, TOKENS = 2, 8, 5
NODE = "/visual/blocks.0/attn"
TOLERANCES = {"float32": 1e-5, "float16": 5e-3}


def draw(seed, *shape, size=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def split(x):
    return x.reshape(*x.shape[:2], HEADS, HEAD_DIM).transpose(0, 2, 1, 3).astype(np.float64)


def attend(q, k, v):
    q, k, v = (split(x) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(HEAD_DIM)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return (shares @ v).transpose(0, 2, 1, 3).reshape(len(q), TOKENS, -1)


@pytest.fixture(params=[(t, c) for t in TARGETS for c in TOLERANCES], ids="-".join)
def form(request):
    return {"target": request.param[0], "compute": request.param[1]}


def make_attention():
    return onnx.helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["y"],
        f"{NODE}/MultiHeadAttention",
        domain="com.microsoft",
        num_heads=HEADS,
    )


def test_the_vits_attention_is_softmax_of_scaled_products(run_lowered, form):
    feed = {name: draw(i, 2, TOKENS, HEADS * HEAD_DIM) for i, name in enumerate("qkv")}
    got = run_lowered([make_attention()], feed, {}, **form)["y"]
    rounded = [x.astype(form["compute"]).astype(np.float32) for x in feed.values()]
    np.testing.assert_allclose(got, attend(*rounded), rtol=0, atol=TOLERANCES[form["compute"]])


def test_products_that_only_scaled_ones_have_room_for_stay_finite(run_lowered):
    # 8 * 140 * 140 is over 65504, divided by the root of 8 it isn't.
    feed = {name: np.full((1, TOKENS, HEADS * HEAD_DIM), 140, np.float32) for name in "qkv"}
    for target in TARGETS:
        nodes = [make_attention()]
        got = run_lowered(nodes, feed, {}, target=target, compute="float16")["y"]
        assert (got == 140).all()


def test_what_is_masked_has_no_share_at_all():
    # A score of float16 is finite with the mask on it, or -inf, which is as good: a token sees
    # itself, so there is always one that isn't.
    assert np.isfinite(np.float16(FAR_BELOW))
    for seen, masked in ((-15000, 14000), (0, 0), (15000, 15000)):
        assert np.exp(np.float32(masked + FAR_BELOW - seen)) == 0


@pytest.mark.parametrize("name", [f"{NODE}/q_rotary", "/model/layers.0/attn/q_rotary"])
def test_rotation_turns_the_two_halves_of_a_head(run_lowered, form, name):
    x, angles = draw(0, 2, TOKENS, HEADS * HEAD_DIM), draw(1, 2, TOKENS, HEAD_DIM // 2, size=3)
    nodes = [
        onnx.helper.make_node("Cos", ["angles"], ["cos"], "/Cos"),
        onnx.helper.make_node("Sin", ["angles"], ["sin"], "/Sin"),
        onnx.helper.make_node("RotaryEmbedding", ["x", "cos", "sin"], ["y"], name, num_heads=HEADS),
    ]
    got = run_lowered(nodes, {"x": x, "angles": angles}, {}, **form)["y"]
    heads = split(x)
    complex_heads = heads[..., : HEAD_DIM // 2] + 1j * heads[..., HEAD_DIM // 2 :]
    turned = complex_heads * np.exp(1j * angles[:, None].astype(np.float64))
    needed = np.concatenate([turned.real, turned.imag], axis=-1)
    needed = needed.transpose(0, 2, 1, 3).reshape(x.shape)
    # float16 rounds the angles as well: 3 radians by 1e-3
    tolerance = TOLERANCES[form["compute"]] * (2 if form["compute"] == "float16" else 1)
    np.testing.assert_allclose(got, needed, rtol=0, atol=tolerance)
