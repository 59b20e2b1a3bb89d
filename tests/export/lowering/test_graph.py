"""What stands in the graph files: operators, types and scales that each TensorRT's parser takes.

The rules are written out here from NVIDIA's and onnx-tensorrt's documents, not taken from the code
that follows them.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import numpy_helper

from vlmedge.export.graphs.data_file import DataFile
from vlmedge.export.lowering.context import Lowering
from vlmedge.export.lowering.emitter import Emitter
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.graph import lower_graph
from vlmedge.export.lowering.initializers import Initializers
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.lowering.targets import TARGETS
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

GRAPHS = ("vision", "vision_video", "decoder")
# onnx-tensorrt's docs/operators.md of the release before 10.3, those marked as supported, as far as
# floats, integers and shapes go.
_PARSER_10_3 = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Concat
    Constant ConstantOfShape Conv Cos Cosh CumSum DequantizeLinear Div Einsum Elu Equal Erf Exp
    Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Identity If InstanceNormalization LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul Max Mean Min Mish Mod Mul Neg NonZero Not
    OneHot Or Pad Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
    Resize Round Scan ScatterElements ScatterND Shape Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where
    Xor
"""
PARSER_10_3 = frozenset(_PARSER_10_3.split())
SINCE_10_15 = frozenset({"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"})
# Gelu is in the list above, but as a composite of operators that round in the compute type; Swish
# came with 11.0.
UNWANTED = frozenset({"Gelu", "Swish"})
OPSETS = {"jetpack-6.2": 20, "jetpack-7.0": 20, "jetpack-7.2": 24, "tensorrt-11": 24}
OPSETS["tensorrt-rtx"] = 24
BLOCKS_OPSET = 21
COMPUTE = {"fp32": T.FLOAT, "fp16": T.FLOAT16, "bf16": T.BFLOAT16}
FLOATS = (T.FLOAT, T.FLOAT16, T.BFLOAT16)

FLOAT_CASES = [
    ("checkpoint", target, dtype)
    for target in OPSETS
    for dtype in (COMPUTE if target in ("jetpack-6.2", "jetpack-7.2") else ("bf16",))
]
# The FP8 ones can't go to Orin, so their plain operators are those of jetpack-7.0.
QUANTIZED_CASES = [
    (source, target, dtype)
    for source, targets in {
        "fp16": ("jetpack-6.2",),
        "int8": ("jetpack-6.2", "tensorrt-rtx"),
        "int4": ("jetpack-6.2", "tensorrt-rtx"),
        "accurate": ("jetpack-7.2", "tensorrt-rtx"),
        "cpu": ("jetpack-6.2", "tensorrt-rtx"),
        "orin": ("jetpack-6.2", "jetpack-7.2", "tensorrt-rtx"),
        "smallest": ("jetpack-6.2", "tensorrt-rtx"),
        "thor": ("jetpack-7.0", "jetpack-7.2"),
        "fp8-attention": ("jetpack-7.0", "jetpack-7.2"),
        "qdq": ("jetpack-6.2", "tensorrt-rtx"),
        "signed": ("jetpack-6.2", "tensorrt-rtx"),
    }.items()
    for target in targets
    for dtype in (("fp16", "bf16") if source in ("orin", "fp8-attention") else ("bf16",))
]
CASES = FLOAT_CASES + QUANTIZED_CASES


class Graph:
    """A graph with the types of all its values."""

    def __init__(self, model):
        self.model, self.nodes = model, model.graph.node
        self.opset = next(o.version for o in model.opset_import if not o.domain)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        graph = inferred.graph
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.shapes = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.types[value.name] = value.type.tensor_type.elem_type
            dims = value.type.tensor_type.shape.dim
            self.shapes[value.name] = [d.dim_value or d.dim_param for d in dims]
        self.makers = {name: node for node in self.nodes for name in node.output}

    def array(self, name):
        return numpy_helper.to_array(self.constants[name])

    def users(self, name):
        return [node for node in self.nodes if name in node.input]

    def of(self, *kinds):
        return [node for node in self.nodes if node.op_type in kinds]


def attributes(node):
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


@pytest.fixture(scope="session")
def make_graphs(lower, load_graph):
    made = {}

    def make(case):
        if case not in made:
            bundle = lower(*case)
            made[case] = {name: Graph(load_graph(bundle, name)) for name in GRAPHS}
        return made[case]

    return make


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def graphs(case, make_graphs):
    return make_graphs(case)


def test_the_checker_passes_the_files(case, lower):
    for name in GRAPHS:
        onnx.checker.check_model(lower(*case) / f"{name}.onnx", full_check=True)


def test_operators_are_those_of_the_parser(case, graphs):
    allowed = PARSER_10_3 - UNWANTED
    if OPSETS[case[1]] > 20:
        allowed |= SINCE_10_15
    for graph in graphs.values():
        assert {node.op_type for node in graph.nodes} <= allowed
        assert {node.domain for node in graph.nodes} == {""}


def test_one_opset_is_stamped_the_targets_or_that_of_blocks(case, graphs):
    for graph in graphs.values():
        assert [o.domain for o in graph.model.opset_import] == [""]
        has_blocks = any("block_size" in attributes(node) for node in graph.nodes)
        assert graph.opset == max(OPSETS[case[1]], BLOCKS_OPSET if has_blocks else 0)


def test_no_operator_is_younger_than_the_stamp(graphs):
    # A stamp of 20 with a node of 21 would be read by rules that don't have it.
    for graph in graphs.values():
        for node in graph.nodes:
            assert onnx.defs.get_schema(node.op_type, graph.opset, "").since_version <= graph.opset


def test_what_a_parser_wants_as_constants_is_constant(graphs):
    for graph in graphs.values():
        for node in graph.of("ReduceMean", "ReduceMax", "Unsqueeze", "Squeeze", "Slice"):
            axes = node.input[3 if node.op_type == "Slice" else 1]
            assert axes in graph.constants, node.name
        for node in graph.of("Split"):
            # By input or by number: of a size that is known, into parts that are known.
            if len(node.input) > 1:
                assert node.input[1] in graph.constants, node.name
                assert "num_outputs" not in attributes(node)
            else:
                axis, parts = attributes(node)["axis"], attributes(node)["num_outputs"]
                assert graph.shapes[node.input[0]][axis] % parts == 0


def test_uint8_is_an_input_and_a_cast_and_nowhere_else(graphs):
    for name, graph in graphs.items():
        found = {value for value, kind in graph.types.items() if kind == T.UINT8}
        assert found == (set() if name == "decoder" else {"pixel_values"})
        for value in found:
            assert [node.op_type for node in graph.users(value)] == ["Cast"]


def test_no_value_is_double_or_of_a_type_that_no_target_has(case, graphs):
    allowed = {T.FLOAT, COMPUTE[case[2]], T.INT64, T.BOOL, T.UINT8, T.INT8, T.INT4}
    allowed.add(T.FLOAT8E4M3FN)
    for graph in graphs.values():
        assert {kind for name, kind in graph.types.items() if name} <= allowed


SAME_TYPES = {
    **dict.fromkeys(("Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Max", "Concat"), (0, 1, 2)),
    "Where": (1, 2),
    "LayerNormalization": (0, 1, 2),
    "RMSNormalization": (0, 1),
    "RotaryEmbedding": (0, 1, 2),
    "Attention": (0, 1, 2),
    "TensorScatter": (0, 1),
}


def test_no_operator_mixes_types(graphs):
    for graph in graphs.values():
        for node in graph.nodes:
            places = SAME_TYPES.get(node.op_type, ())
            kinds = {graph.types[node.input[i]] for i in places if i < len(node.input)}
            assert len(kinds) <= 1, node.name
            assert all(graph.types.get(output) for output in node.output), node.name


def test_products_are_in_the_compute_type_and_what_must_be_in_float32(case, graphs):
    compute = COMPUTE[case[2]]
    for graph in graphs.values():
        for node in graph.of("MatMul", "Attention", "Gemm"):
            kept = node.op_type == "Gemm" and "patch_embed" in node.name
            assert graph.types[node.input[0]] == (T.FLOAT if kept else compute), node.name
        for node in graph.of("LayerNormalization", "RMSNormalization", "Cos", "Sin", "Erf", "Sqrt"):
            assert graph.types[node.input[0]] == T.FLOAT, node.name


def test_the_vits_rotation_is_in_float32_the_decoders_in_the_compute_type(case, graphs):
    for name, graph in graphs.items():
        rotations = [
            node
            for node in graph.of("RotaryEmbedding", "Mul", "Sub")
            if "_rotary/" in node.name and not node.name.endswith("/shift")
        ]
        needed = COMPUTE[case[2]] if name == "decoder" else T.FLOAT
        assert {graph.types[node.output[0]] for node in rotations} == {needed}


def test_scales_are_positive_and_of_the_compute_type_zero_points_are_zero(case, graphs):
    compute = COMPUTE[case[2]]
    for graph in graphs.values():
        for node in graph.of("QuantizeLinear", "DequantizeLinear"):
            scale = graph.array(node.input[1])  # a constant, or this is a KeyError
            assert graph.types[node.input[1]] == compute, node.name
            assert (scale.astype(np.float64) > 0).all(), node.name
            assert np.isfinite(scale.astype(np.float64)).all(), node.name
            if len(node.input) > 2:
                assert not graph.array(node.input[2]).astype(np.float32).any(), node.name
            kind = graph.types[node.output[0]]
            if node.op_type == "DequantizeLinear":
                assert kind == compute, node.name
            else:
                assert kind in (T.INT8, T.FLOAT8E4M3FN), node.name


def test_nothing_stands_between_a_dequantized_matrix_and_its_product(case, graphs):
    is_quantized = case[0] not in ("checkpoint", "fp16", "fp32")
    found = 0
    for graph in graphs.values():
        for node in graph.of("DequantizeLinear"):
            if node.input[0] not in graph.constants:
                continue
            found += 1
            (user,) = graph.users(node.output[0])
            assert (user.op_type, user.input[1]) == ("Gemm", node.output[0]), node.name
            assert attributes(user)["transB"] == 1
    assert bool(found) == is_quantized


def test_activations_are_quantized_right_before_their_product(graphs):
    for graph in graphs.values():
        for node in graph.of("QuantizeLinear"):
            (dequantize,) = graph.users(node.output[0])
            assert dequantize.op_type == "DequantizeLinear", node.name
            assert list(dequantize.input[1:]) == list(node.input[1:]), node.name
            kinds = {user.op_type for user in graph.users(dequantize.output[0])}
            assert kinds in ({"Gemm"}, {"MatMul"}), node.name


def test_blocks_fill_rows_and_are_of_a_size_the_target_takes(case, graphs):
    is_rtx = case[1] == "tensorrt-rtx"
    for graph in graphs.values():
        for node in graph.of("DequantizeLinear"):
            size = attributes(node).get("block_size")
            if not size:
                continue
            rows, columns = graph.array(node.input[0]).shape
            kind = graph.types[node.input[0]]
            assert attributes(node)["axis"] == 1
            assert size in ((16, 32, 64, 128) if is_rtx else (64, 128)), node.name
            assert kind == T.INT4 or is_rtx, node.name
            assert graph.array(node.input[1]).shape == (rows, columns // size)
            assert columns % size == 0


def test_every_input_and_every_constant_is_used(graphs):
    # TensorRT drops an unused input, and a host that binds it gets an error.
    for graph in graphs.values():
        used = {name for node in graph.nodes for name in node.input}
        assert {value.name for value in graph.model.graph.input} <= used
        assert set(graph.constants) <= used
        outputs = {value.name for value in graph.model.graph.output}
        assert all(used & set(node.output) or outputs & set(node.output) for node in graph.nodes)


def test_names_are_unique_and_nodes_in_order(graphs):
    for graph in graphs.values():
        names = [node.name for node in graph.nodes]
        assert len(set(names)) == len(names)
        known = {value.name for value in graph.model.graph.input} | set(graph.constants)
        for node in graph.nodes:
            assert set(node.input) - {""} <= known, node.name
            assert not set(node.output) & known, node.name
            known |= set(node.output)


def test_a_cast_changes_the_type(graphs):
    # One that doesn't would stand in the way of a fusion for nothing.
    for graph in graphs.values():
        for node in graph.of("Cast"):
            assert graph.types[node.input[0]] != graph.types[node.output[0]], node.name


def test_a_scatter_is_from_a_graph_input_to_a_graph_output(case, graphs):
    # TensorRT updates a cache in place only so: static size, BHSD, linear.
    graph = graphs["decoder"]
    inputs = {value.name for value in graph.model.graph.input}
    outputs = {value.name for value in graph.model.graph.output}
    scatters = graph.of("TensorScatter")
    assert len(scatters) == (4 if OPSETS[case[1]] > 20 else 0)
    for node in scatters:
        assert node.input[0] in inputs
        assert node.output[0] in outputs
        assert (attributes(node)["axis"], attributes(node)["mode"]) == (-2, b"linear")
        assert isinstance(graph.shapes[node.input[0]][2], int)


def test_an_attention_has_one_output_four_dimensions_and_no_mask_of_its_own(graphs):
    for name, graph in graphs.items():
        for node in graph.of("Attention"):
            assert len(node.output) == 1
            assert len(node.input) == (4 if name == "decoder" else 3)
            assert set(attributes(node)) <= {"scale"}
            assert all(len(graph.shapes[value]) == 4 for value in node.input)


@pytest.mark.parametrize("target", OPSETS)
def test_attention_products_of_the_decoder_stay_float(make_graphs, target):
    graph = make_graphs(("checkpoint", target, "fp16"))["decoder"]
    for node in graph.of("MatMul", "Softmax"):
        assert {graph.types[name] for name in node.input} == {T.FLOAT16}


def test_fp8_attention_has_its_pairs_on_all_four_factors(make_graphs):
    for target in ("jetpack-7.0", "jetpack-7.2"):
        graph = make_graphs(("fp8-attention", target, "fp16"))["vision"]
        products = [n for n in graph.of("MatMul") if "/attn/" in n.name]
        assert len(products) == 4  # two in each of two blocks
        for node in products:
            for factor in node.input:
                assert graph.makers[factor].op_type == "DequantizeLinear"
        assert not graph.of("Attention")


def test_weights_of_a_float16_bundle_have_no_cast(make_graphs):
    graph = make_graphs(("fp16", "jetpack-6.2", "bf16"))["decoder"]
    assert all(node.input[1] in graph.constants for node in graph.of("Gemm"))


@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.2"])
@pytest.mark.parametrize("source", ["checkpoint", "orin"])
def test_bfloat16_graphs_are_the_float16_ones_but_for_the_type(make_graphs, source, target):
    # No engine on a CPU runs bfloat16: what is shown of float16 holds for it as well.
    half, brain = (make_graphs((source, target, dtype)) for dtype in ("fp16", "bf16"))

    def describe(graph):
        for node in graph.nodes:
            about = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if about.get("to") == T.BFLOAT16:
                about["to"] = T.FLOAT16
            names = (node.name, *node.input, *node.output)
            yield node.op_type, [n.replace("bfloat16", "float16") for n in names], about

    for name in GRAPHS:
        assert list(describe(half[name])) == list(describe(brain[name]))


@pytest.mark.parametrize(("kind", "domain"), [("FastGelu", "com.microsoft"), ("Selu", "")])
def test_an_operator_without_a_rule_is_named(kind, domain):
    emitter = Emitter("float32")
    weights = Initializers(emitter, onnx.ModelProto(), {}, DataFile("x"))
    lowering = Lowering(emitter, weights, TARGETS["jetpack-6.2"], "append", 8)
    node = onnx.helper.make_node(kind, ["x"], ["y"], "/visual/strange", domain=domain)
    ends = [[onnx.helper.make_tensor_value_info(name, T.FLOAT, [2])] for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "vision", *ends))
    with pytest.raises(ValueError, match=f"/visual/strange: .*{kind}"):
        lower_graph("vision", model, lowering, None)


def test_a_quantized_cache_is_refused_with_what_to_do(make_bundle, width, tmp_path, pictures):
    recipe = parse_recipe('name = "kv"\n[kv_cache]\nformat = "int8-tensor"\n', "kv")
    quantize_bundle(make_bundle(width).bundle, tmp_path / "kv", recipe, pictures, num_threads=1)
    with pytest.raises(ValueError, match="quantize with kv_cache float"):
        export_for_target(tmp_path / "kv", tmp_path / "out", LoweringOptions("jetpack-6.2"))
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_which_graphs_must_not_be_fused(lower):
    for name, keep in (("thor", True), ("orin", False)):
        graphs = read_manifest(lower(name, "jetpack-7.2")).graphs
        assert {graph.keep_qdq for graph in graphs.values()} == {keep}
