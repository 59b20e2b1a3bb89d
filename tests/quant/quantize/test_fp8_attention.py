"""The ViT's attention written out with FP8 on its products, against numpy and ml_dtypes."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlmedge.quant.quantize.calibration import LayerCalibration
from vlmedge.quant.quantize.fp8_attention import make_attention_nodes
from vlmedge.quant.quantize.products import FACTORS, name_factor
from vlmedge.quant.quantize.rewrite import rewrite
from vlmedge.quant.rounding.histogram import ActivationStats
from vlmedge.runtime import GenerationOptions, Model

HEADS, SIZE, ROWS = 2, 16, 20
PICTURES = 2
STAGE = "visual.blocks.0"
NODE = "/visual/blocks.0/attn/MultiHeadAttention"
FP8 = ml_dtypes.float8_e4m3fn


def make_float_model():
    names = list(FACTORS)
    shape = ["T", "N", HEADS * SIZE]
    infos = [onnx.helper.make_tensor_value_info(name, 1, shape) for name in names]
    output = onnx.helper.make_tensor_value_info("y", 1, shape)
    node = onnx.helper.make_node(
        "MultiHeadAttention", names, ["y"], NODE, domain="com.microsoft", num_heads=HEADS
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph([node], "one_attention", infos, [output])
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def draw(size=1.0):
    generator = np.random.default_rng(0)
    shape = (PICTURES, ROWS, HEADS * SIZE)
    return {name: size * generator.standard_normal(shape, np.float32) for name in FACTORS}


def calibrate(factors):
    found = {}
    for name, values in factors.items():
        stats = ActivationStats(HEADS * SIZE)
        stats.update(values)
        found[name_factor(STAGE, name)] = LayerCalibration(stats)
    return found


def write_out(calibration):
    model = make_float_model()
    nodes = make_attention_nodes(model.graph, "fp8", calibration, HEADS)
    rewritten = rewrite(model, nodes, {})
    for name, array in rewritten.tensors.items():
        tensor = onnx.numpy_helper.from_array(np.asarray(array), name)
        rewritten.model.graph.initializer.append(tensor)
    return rewritten.model


def run(model, factors):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(model.SerializeToString(), options).run(["y"], factors)[0]


def round_fp8(x, scale):
    scale = np.float32(scale)
    return np.clip(x / scale, -448, 448).astype(FP8).astype(np.float32) * scale


def attend(factors, amax=None):
    """By definition; amax: of each factor, to round both products' factors to FP8."""
    heads = {
        name: x.reshape(PICTURES, ROWS, HEADS, SIZE).transpose(0, 2, 1, 3)
        for name, x in factors.items()
    }
    q, k, v = (heads[name] for name in FACTORS)
    q = q * np.float32(1 / np.sqrt(SIZE))
    if amax:
        q = round_fp8(q, amax["query"] / np.sqrt(SIZE) / 448)
        k, v = (round_fp8(heads[name], amax[name] / 448) for name in ("key", "value"))
    scores = q @ k.swapaxes(2, 3)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    if amax:
        shares = round_fp8(shares, 1 / 448)
    return (shares @ v).transpose(0, 2, 1, 3).reshape(PICTURES, ROWS, -1)


def test_both_products_are_those_of_rounded_factors():
    factors = draw()
    amax = {name: np.abs(x).max() for name, x in factors.items()}
    got = run(write_out(calibrate(factors)), factors)
    needed = attend(factors, amax)
    # A share next to the middle of two FP8 values may fall to either side: a step of 1/16 of it.
    assert np.abs(got - needed).max() < 2e-2
    assert np.median(np.abs(got - needed)) < 1e-6


def test_it_is_near_the_float_attention_and_not_the_same():
    factors = draw()
    needed = attend(factors)
    np.testing.assert_allclose(run(make_float_model(), factors), needed, atol=1e-5)
    error = np.linalg.norm(run(write_out(calibrate(factors)), factors) - needed)
    assert 0.001 < error / np.linalg.norm(needed) < 0.06


def test_what_is_beyond_the_calibrated_range_saturates():
    calibration = calibrate(draw(0.5))
    factors = draw(2.0)
    amax = {name: np.abs(x).max() for name, x in draw(0.5).items()}
    got = run(write_out(calibration), factors)
    assert np.median(np.abs(got - attend(factors, amax))) < 1e-6


def test_round_trips_stand_right_on_the_products_factors_as_tensorrt_fuses_them():
    model = write_out(calibrate(draw()))
    onnx.checker.check_model(model, full_check=True)
    makers = {node.output[0]: node for node in model.graph.node}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2
    for product in products:
        assert [makers[value].op_type for value in product.input] == ["DequantizeLinear"] * 2
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    (quantize,) = (n for n in model.graph.node if softmax.output[0] in n.input)
    assert tensors[quantize.input[1]] == np.float32(1 / 448)
    for node in model.graph.node:
        assert node.domain == ""
        if node.op_type == "QuantizeLinear":
            assert tensors[node.input[2]].dtype == FP8
            assert float(tensors[node.input[2]]) == 0
    assert model.graph.node[-1].output[0] == "y"


def test_a_float_attention_is_left_alone():
    assert make_attention_nodes(make_float_model().graph, "float", {}, HEADS) == {}


RECIPE = """name = "fp8-attention"
[attention]
vision = "fp8"
"""


@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
def test_a_bundle_with_fp8_attention_answers_for_pictures_and_clips(quantize, questions, size):
    made = quantize(RECIPE, size)
    assert made.manifest.graphs["vision"].keep_qdq
    assert made.manifest.graphs["vision_video"].keep_qdq
    assert not made.manifest.graphs["decoder"].keep_qdq
    entries = {e.name: e for e in made.manifest.coverage if e.kind == "attention"}
    for name, entry in entries.items():
        is_vision = name.startswith("visual")
        assert entry.precision == ("float8_e4m3fn" if is_vision else "float32")
    options = GenerationOptions(max_new_tokens=3, do_sample=False)
    with Model.load(made.bundle, providers="cpu", num_threads=1) as model:
        for example in questions.examples:
            assert model.chat(example.messages, options).token_ids
