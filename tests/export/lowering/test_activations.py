"""Activations by their definitions, in float64 and with the standard library's erf."""

import math

import numpy as np
import onnx
import pytest

TARGETS = ("jetpack-6.2", "jetpack-7.2")
# Of values up to 30: float32's rounding, and float16's of each of two or three steps.
TOLERANCES = {"float32": 1e-5, "float16": 0.03}
X = np.linspace(-30, 30, 601, dtype=np.float32).reshape(1, 1, -1)


def run(run_lowered, target, compute, **about):
    node = onnx.helper.make_node(inputs=["x"], outputs=["y"], name="/visual/act", **about)
    got = run_lowered([node], {"x": X}, {}, target=target, compute=compute)["y"]
    return got, X.astype(compute).astype(np.float64)


@pytest.fixture(params=[(t, c) for t in TARGETS for c in TOLERANCES], ids="-".join)
def form(request):
    return request.param


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_quick_gelu_is_x_times_the_sigmoid_of_alpha_x(run_lowered, form, alpha):
    about = {"op_type": "QuickGelu", "domain": "com.microsoft", "alpha": alpha}
    got, x = run(run_lowered, *form, **about)
    needed = x / (1 + np.exp(-alpha * x))
    np.testing.assert_allclose(got, needed, rtol=0, atol=TOLERANCES[form[1]])


def test_gelu_is_the_exact_one(run_lowered, form):
    got, x = run(run_lowered, *form, op_type="Gelu", domain="com.microsoft")
    needed = [value / 2 * (1 + math.erf(value / math.sqrt(2))) for value in x.reshape(-1)]
    np.testing.assert_allclose(got.reshape(-1), needed, rtol=0, atol=TOLERANCES[form[1]])
    # The tanh form is up to 5e-4 off, which float32 shows
    tanh = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if form[1] == "float32":
        assert np.abs(got - tanh).max() > 1e-4
