"""Every form's nodes compute what its codes and scales say, by numpy, and are legal ONNX."""

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vlmedge.quant.graph.linears import Linear
from vlmedge.quant.quantize.linear_nodes import (
    QuantizedLinear,
    describe_precision,
    place,
    unpack_levels,
)
from vlmedge.quant.recipe.recipe import LinearRecipe
from vlmedge.quant.rounding.weight_only import pack_codes
from vlmedge.runtime.backends.ort.exact_products import make_entries

ROWS, OUT, IN = 5, 24, 128
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
RECIPES = {
    "int8": LinearRecipe("int8"),
    "int8-dynamic": LinearRecipe("int8-dynamic"),
    "fp8": LinearRecipe("fp8"),
    "int8-weight": LinearRecipe("int8-weight", block_size=32),
    "int4-weight": LinearRecipe("int4-weight", block_size=64),
    "int8-weight qdq": LinearRecipe("int8-weight", block_size=32, layout="qdq"),
    "int4-weight qdq": LinearRecipe("int4-weight", block_size=64, layout="qdq"),
}
STANDARD = [name for name in RECIPES if "weight" not in name or "qdq" in name]
INPUT_SCALE = 0.03


def make_linear(bias=True, in_features=IN):
    return Linear(
        name="visual.blocks.0.mlp.fc1",
        stage="visual.blocks.0",
        node="/visual/blocks.0/mlp/fc1/MatMul",
        input="x",
        output="y",
        weight="visual.blocks.0.mlp.fc1.weight",
        bias="visual.blocks.0.mlp.fc1.bias" if bias else None,
        out_features=OUT,
        in_features=in_features,
    )


def make_quantized(name, bias=True, in_features=IN, seed=0):
    """Random codes and scales, and the matrix they are by numpy."""
    recipe, generator = RECIPES[name], np.random.default_rng(seed)
    vector = generator.standard_normal(OUT, np.float32) if bias else None
    if "weight" in recipe.format:
        bits = 4 if recipe.format == "int4-weight" else 8
        codes = generator.integers(0, 1 << bits, (OUT, in_features), np.uint8)
        codes[0, :2] = 0, (1 << bits) - 1  # the ends of the range
        blocks = -(-in_features // recipe.block_size)
        scales = generator.uniform(-0.1, 0.1, (OUT, blocks)).astype(np.float32)
        spread = np.repeat(scales, recipe.block_size, axis=1)[:, :in_features]
        matrix = (codes.astype(np.float32) - (1 << (bits - 1))) * spread
        packed = pack_codes(codes, bits, recipe.block_size)
        return QuantizedLinear(recipe, packed, scales, None, vector), matrix
    scales = generator.uniform(0.001, 0.02, OUT).astype(np.float32)
    if name == "fp8":
        values = generator.standard_normal((OUT, in_features)) * 100
        codes = np.clip(values, -448, 448).astype(FP8)
        matrix = codes.astype(np.float32) * scales[:, None]
        return QuantizedLinear(recipe, codes.view(np.uint8), scales, INPUT_SCALE, vector), matrix
    codes = generator.integers(-127, 128, (OUT, in_features), np.int8)
    matrix = codes.astype(np.float32) * scales[:, None]
    input_scale = INPUT_SCALE if name == "int8" else None
    return QuantizedLinear(recipe, codes, scales, input_scale, vector), matrix


def make_model(linear, quantized, change=None):
    """A graph of this one layer."""
    placed = place(linear, quantized)
    tensors = [onnx.numpy_helper.from_array(np.asarray(t), n) for n, t in placed.tensors.items()]
    sizes = (("x", linear.in_features), ("y", linear.out_features))
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["N", size]) for name, size in sizes)
    graph = onnx.helper.make_graph(placed.nodes, "one_layer", [x], [y], tensors)
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if change:
        change(model)
    return model


def run(model, x, keep_qdq=False):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = model.SerializeToString()
    for key, value in make_entries(data, keep_qdq=keep_qdq).items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(data, options)
    return session.run(["y"], {"x": x})[0]


def draw_input(in_features=IN, seed=1):
    """Rows of very different size, one beyond every range, one of zeros."""
    x = np.random.default_rng(seed).standard_normal((ROWS, in_features), np.float32)
    x[1] *= 100
    x[2] *= 1e-3
    x[3] = 0
    return x


def round_input(name, x):
    """What the layer's matrix is multiplied by."""
    if name == "int8":
        return np.clip(np.rint(x / np.float32(INPUT_SCALE)), -128, 127) * np.float32(INPUT_SCALE)
    if name == "fp8":
        scaled = np.clip(x / np.float32(INPUT_SCALE), -448, 448)
        return scaled.astype(FP8).astype(np.float32) * np.float32(INPUT_SCALE)
    if name == "int8-dynamic":
        scales = np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(127), 1e-30)
        return np.rint(x / scales) * scales
    return x


def exact_product(model):
    """MatMulNBits without rounding its input to int8 in blocks."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_a_layer_computes_what_its_codes_and_scales_say(name, bias):
    quantized, matrix = make_quantized(name, bias)
    model = make_model(make_linear(bias), quantized, exact_product)
    x = draw_input()
    needed = round_input(name, x).astype(np.float64) @ matrix.astype(np.float64).T
    if bias:
        needed = needed + quantized.bias
    got = run(model, x, keep_qdq=name == "fp8")
    size = np.abs(needed).max(axis=1, keepdims=True)
    assert (np.abs(got - needed) <= 2e-6 * size + 1e-6).all()


def test_a_shift_is_subtracted_before_rounding_and_the_bias_may_hold_it():
    quantized, matrix = make_quantized("int8")
    shift = np.linspace(-1, 2, IN, dtype=np.float32)
    shifted = dataclasses.replace(quantized, shift=shift)
    x = draw_input()
    needed = round_input("int8", x - shift).astype(np.float64) @ matrix.T + quantized.bias
    model = make_model(make_linear(), shifted)
    onnx.checker.check_model(model, full_check=True)
    got = run(model, x)
    assert (np.abs(got - needed) <= 2e-6 * np.abs(needed).max(axis=1, keepdims=True) + 1e-6).all()


@pytest.mark.parametrize("name", ["int8-weight", "int4-weight"])
def test_a_row_that_ends_inside_a_block_is_computed_to_its_end(name):
    quantized, matrix = make_quantized(name, in_features=IN - 24)
    x = draw_input(IN - 24)
    got = run(make_model(make_linear(True, IN - 24), quantized, exact_product), x)
    needed = x.astype(np.float64) @ matrix.astype(np.float64).T + quantized.bias
    assert (np.abs(got - needed) <= 2e-6 * np.abs(needed).max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("name", ["int8-weight", "int4-weight"])
def test_weight_only_layers_ask_for_int8_activations_and_stay_within_their_error(name):
    quantized, matrix = make_quantized(name)
    model = make_model(make_linear(), quantized)
    (node,) = model.graph.node
    assert onnx.helper.get_node_attr_value(node, "accuracy_level") == 4
    x = draw_input()
    needed = x @ matrix.T + quantized.bias
    # half a step of 1/127 of a block's largest, over the product of random signs
    assert np.linalg.norm(run(model, x) - needed) <= 0.01 * np.linalg.norm(needed)


def test_the_int8_product_is_one_of_integers(tmp_path):
    # The layer is worth its rounding only where onnxruntime fuses it.
    for name in ("int8", "int8-dynamic"):
        quantized, _ = make_quantized(name)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        ort.InferenceSession(make_model(make_linear(), quantized).SerializeToString(), options)
        ops = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
        assert ops & {"QGemm", "MatMulIntegerToFloat", "QLinearMatMul"}, (name, ops)
        assert not ops & {"Gemm", "MatMul"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_the_graph_is_valid_onnx_and_keeps_the_float_layers_names(name, bias):
    linear = make_linear(bias)
    quantized, _ = make_quantized(name, bias)
    onnx.checker.check_model(make_model(linear, quantized), full_check=True)
    placed = place(linear, quantized)
    assert placed.nodes[-1].output[0] == linear.output
    names = [node.name for node in placed.nodes]
    assert len(names) == len(set(names))
    assert all(name.startswith(linear.prefix + "/") for name in names)
    made = [value for node in placed.nodes for value in node.output]
    assert len(made) == len(set(made))
    if bias:
        np.testing.assert_array_equal(placed.tensors[linear.bias], quantized.bias)


@pytest.mark.parametrize("name", STANDARD)
def test_standard_forms_are_what_tensorrt_reads(name):
    # Symmetric: every zero point 0. Activations per tensor, weights per output channel or in
    # blocks of the last axis, float32 scales; a quantized constant feeds DequantizeLinear alone.
    placed = place(make_linear(), make_quantized(name)[0])
    tensors = placed.tensors
    quantized_types = {np.dtype(np.int8), FP8, np.dtype(ml_dtypes.int4)}
    for node in placed.nodes:
        assert node.domain == ""
        is_round_trip = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if is_round_trip:
            assert tensors[node.input[1]].dtype == np.float32
            if len(node.input) == 3:
                assert not np.asarray(tensors[node.input[2]], np.float32).any()
        for value in node.input:
            if value in tensors and tensors[value].dtype in quantized_types:
                assert is_round_trip
    (weight,) = (
        n for n in placed.nodes if n.op_type == "DequantizeLinear" and n.input[0] in tensors
    )
    attributes = {a.name: a.i for a in weight.attribute}
    if "weight" in name:
        assert attributes == {"axis": 1, "block_size": RECIPES[name].block_size}
    else:
        assert attributes == {"axis": 0}
        assert tensors[weight.input[1]].shape == (OUT,)
    for node in placed.nodes:
        if node.op_type == "QuantizeLinear":
            assert tensors[node.input[1]].shape == ()


def test_int4_constants_are_stored_as_int4():
    placed = place(make_linear(), make_quantized("int4-weight qdq")[0])
    (codes,) = (t for t in placed.tensors.values() if t.dtype == ml_dtypes.int4)
    assert codes.shape == (OUT, IN)
    assert (codes.astype(np.int8).min(), codes.astype(np.int8).max()) == (-8, 7)


def test_layers_of_one_graph_share_only_constants_that_are_the_same():
    first, second = make_linear(), make_linear()
    object.__setattr__(second, "name", "visual.blocks.1.mlp.fc1")
    object.__setattr__(second, "weight", "visual.blocks.1.mlp.fc1.weight")
    object.__setattr__(second, "bias", "visual.blocks.1.mlp.fc1.bias")
    for name in RECIPES:
        one = place(first, make_quantized(name, seed=0)[0]).tensors
        other = place(second, make_quantized(name, seed=1)[0]).tensors
        for shared in set(one) & set(other):
            np.testing.assert_array_equal(one[shared], other[shared])


@settings(deadline=None)
@given(
    st.sampled_from([4, 8]),
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([8, 16]))),
)
def test_levels_come_out_of_the_packing_one_by_one(bits, packed):
    got = unpack_levels(packed, bits)
    for row, blocks in enumerate(packed):
        needed = []
        for byte in blocks.reshape(-1):
            if bits == 8:
                needed.append(int(byte) - 128)
            else:
                needed += [int(byte) % 16 - 8, int(byte) // 16 - 8]
        assert got[row].tolist() == needed


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (LinearRecipe("float"), "float16"),
        (LinearRecipe("int8", "gptq"), "int8 static"),
        (LinearRecipe("int8-dynamic"), "int8 dynamic"),
        (LinearRecipe("fp8"), "float8_e4m3fn"),
        (LinearRecipe("int8-weight", block_size=128), "int8 block 128"),
        (LinearRecipe("int4-weight", block_size=32), "int4 block 32"),
    ],
)
def test_precisions_are_named_as_manifests_name_them(recipe, words):
    assert describe_precision(recipe, "float16") == words
