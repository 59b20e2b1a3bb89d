"""Sessions that run float8 as it stands: the file of a graph, and the manifest that asks for it."""

import json
import shutil

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.backends.ort.session import check_cache, name_dtype, open_session
from vlmedge.runtime.bundle.manifest import MANIFEST_NAME, GraphSpec, TensorSpec
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.errors import BackendError

CPU = ("CPUExecutionProvider",)
VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
has_float8 = pytest.mark.skipif(
    VERSION < (1, 24), reason=f"onnxruntime {ort.__version__} has no QuantizeLinear of opset 23"
)
FLOAT8 = TensorProto.FLOAT8E4M3FN


def make_float8_pair(name, source, scale):
    """Constants and nodes that round `source` to float8 and back."""
    constants = [
        numpy_helper.from_array(np.float32(scale), f"{name}.scale"),
        helper.make_tensor(f"{name}.zero", FLOAT8, [], [0.0]),
    ]
    names = [constant.name for constant in constants]
    nodes = [
        helper.make_node("QuantizeLinear", [source, *names], [f"{name}.codes"]),
        helper.make_node("DequantizeLinear", [f"{name}.codes", *names], [f"{name}.rounded"]),
    ]
    return constants, nodes


@pytest.fixture(scope="module")
def float8_graph(tmp_path_factory):
    """x[2, 16] times a matrix [16, 8], both rounded to float8, in a file; the matrix."""
    matrix = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    constants, nodes = [numpy_helper.from_array(matrix, "w")], []
    for name, scale in (("x", 0.01), ("w", 0.02)):
        added = make_float8_pair(name, name, scale)
        constants += added[0]
        nodes += added[1]
    nodes.append(helper.make_node("MatMul", ["x.rounded", "w.rounded"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "float8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    path = tmp_path_factory.mktemp("graph") / "float8.onnx"
    onnx.save(model, path)
    return path, matrix


def round_float8(x, scale):
    return (x / np.float32(scale)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


@has_float8
def test_float8_that_is_kept_runs_and_is_that_of_ml_dtypes(float8_graph):
    path, matrix = float8_graph
    x = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
    session = open_session(path, CPU, 1, keep_qdq=True)
    (y,) = session.run(None, {"x": x})
    expected = round_float8(x, np.float32(0.01)) @ round_float8(matrix, np.float32(0.02))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(y - x @ matrix).max() > 1e-2


@pytest.fixture
def float8_bundle(tiny, tmp_path):
    """The tiny bundle, every down_proj in float8, whose manifest says to keep it."""
    bundle = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    nodes = []
    for node in model.graph.node:
        if "down_proj" in node.name:
            for place in (0, 1):
                name = f"{node.name}.{place}"
                constants, added = make_float8_pair(name, node.input[place], 0.02)
                model.graph.initializer.extend(constants)
                nodes += added
                node.input[place] = f"{name}.rounded"
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, bundle / "decoder.onnx")
    raw = json.loads((bundle / MANIFEST_NAME).read_text())
    raw["graphs"]["decoder"]["keep_qdq"] = True
    raw["files"]["decoder.onnx"]["bytes"] = (bundle / "decoder.onnx").stat().st_size
    (bundle / MANIFEST_NAME).write_text(seal_manifest(raw))
    return bundle


def find_option(session):
    """Whether fusing is off, as the session says."""
    try:
        return session.get_session_options().get_session_config_entry("session.disable_quant_qdq")
    except RuntimeError:  # onnxruntime's word for an option that was not set
        return None


@has_float8
def test_the_manifest_says_which_graphs_keep_it(float8_bundle):
    options = GenerationOptions(max_new_tokens=2, ignore_eos=True)
    with Model.load(float8_bundle, num_threads=1) as model:
        backend = model._engine._backend
        assert len(model.answer("?", options=options).token_ids) == 2
        assert find_option(backend.load("decoder")) == "1"
        assert find_option(backend.load("vision")) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tensor(float)", "float32"),
        ("tensor(float8e4m3fn)", "float8_e4m3fn"),
        ("tensor(int8)", "int8"),
        ("tensor(float16)", "float16"),
    ],
)
def test_types_have_the_manifests_names(name, expected):
    assert name_dtype(name) == expected


def test_an_onnxruntime_that_is_too_old_for_an_int8_cache_is_named():
    cache = ("batch", 2, "capacity", 16)
    past = TensorSpec("past_key_values.0.key", "int8", cache)
    codes = GraphSpec("decoder.onnx", (past,), ())
    floats = GraphSpec("decoder.onnx", (TensorSpec(past.name, "float32", cache),), ())
    with pytest.raises(BackendError, match=r"decoder\.onnx has an int8 KV cache.*1\.27.*1\.9\.1"):
        check_cache(codes, CPU[0], "1.9.1")
    check_cache(floats, CPU[0], "1.26.0")
    check_cache(codes, CPU[0], "1.27.0")
    check_cache(codes, CPU[0], "2.0.0rc1")
    check_cache(codes, "CUDAExecutionProvider", "1.26.0")
