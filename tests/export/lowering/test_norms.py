"""Norms by their definitions in float64, where float16 would overflow too."""

import numpy as np
import onnx
import pytest

TARGETS = ("jetpack-6.2", "jetpack-7.2")
CHANNELS = 12
EPSILON = 1e-6
# float32: sums in another order. float16: the result's own rounding, of values up to 4.
TOLERANCES = {"float32": 1e-5, "float16": 4e-3}


def draw(seed, *shape, size=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def rms_norm(x, weight):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * weight


def layer_norm(x, weight, bias):
    x = x.astype(np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    return rms_norm(x, weight) + bias


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


@pytest.fixture(params=TOLERANCES)
def compute(request):
    return request.param


WEIGHTS = {"w": 1 + draw(1, CHANNELS, size=0.1), "b": draw(2, CHANNELS, size=0.1)}


def make(kind, inputs, outputs, domain=""):
    about = {"axis": -1} if not domain else {}
    return onnx.helper.make_node(
        kind, inputs, outputs, "/visual/norm", domain=domain, epsilon=EPSILON, **about
    )


# 300: its square is over float16's range; 1e-4: its square is under it.
@pytest.mark.parametrize("size", [1.0, 300.0, 1e-4])
def test_rms_norm_is_in_float32_whatever_the_rest_is_in(run_lowered, target, compute, size):
    x = draw(0, 2, 3, CHANNELS, size=size)
    node = make("RMSNormalization", ["x", "w"], ["y"])
    constants = {"w": WEIGHTS["w"]}
    got = run_lowered([node], {"x": x}, constants, target=target, compute=compute)["y"]
    rounded = x.astype(compute).astype(np.float32)
    needed = rms_norm(rounded, WEIGHTS["w"])
    np.testing.assert_allclose(got, needed, rtol=0, atol=TOLERANCES[compute])
    assert np.isfinite(got).all()


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_layer_norm_is_in_float32_whatever_the_rest_is_in(run_lowered, target, compute, size):
    x = draw(0, 2, 3, CHANNELS, size=size)
    node = make("LayerNormalization", ["x", "w", "b"], ["y"])
    got = run_lowered([node], {"x": x}, WEIGHTS, target=target, compute=compute)["y"]
    needed = layer_norm(x.astype(compute).astype(np.float32), WEIGHTS["w"], WEIGHTS["b"])
    np.testing.assert_allclose(got, needed, rtol=0, atol=TOLERANCES[compute])


@pytest.mark.parametrize("wants_sum", [True, False])
@pytest.mark.parametrize("kind", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_sum_and_norm_come_apart_and_both_can_be_had(run_lowered, target, compute, kind, wants_sum):
    x, branch = draw(0, 2, 3, CHANNELS), draw(3, 2, 3, CHANNELS)
    is_rms = kind == "SkipSimplifiedLayerNormalization"
    constants = {"w": WEIGHTS["w"]} if is_rms else WEIGHTS
    outputs = ["y", "", "", "sum"] if wants_sum else ["y"]
    node = make(kind, ["x", "branch", *constants], outputs, "com.microsoft")
    feed = {"x": x, "branch": branch}
    got = run_lowered([node], feed, constants, target=target, compute=compute)
    tolerance = TOLERANCES[compute]
    total = x.astype(compute) + branch.astype(compute)
    norm = rms_norm(total, WEIGHTS["w"]) if is_rms else layer_norm(total, *WEIGHTS.values())
    np.testing.assert_allclose(got["y"], norm, rtol=0, atol=tolerance)
    assert ("sum" in got) == wants_sum
    if wants_sum:
        np.testing.assert_allclose(got["sum"], total, rtol=0, atol=tolerance)


def test_zeros_stay_zeros(run_lowered, target, compute):
    node = make("RMSNormalization", ["x", "w"], ["y"])
    x = np.zeros((1, 2, CHANNELS), np.float32)
    constants = {"w": WEIGHTS["w"]}
    got = run_lowered([node], {"x": x}, constants, target=target, compute=compute)["y"]
    assert not got.any()
