"""The one way to TensorRT: with the names of every version from 10.3 on, and with the real RTX."""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlmedge.export.engines.adapter import EngineRequest, TensorRt, open_tensorrt
from vlmedge.runtime.backends.trt.engine_set import Profile, ShapeRange
from vlmedge.runtime.errors import BackendError

VERSIONS = ["10.3.0", "10.7.0", "10.13.3", "10.14.1", "10.16.1", "11.0.0", "11.4.0"]
PROFILES = (
    Profile("prefill", {"x": ShapeRange((1, 8), (4, 8), (16, 8))}),
    Profile("decode", {"x": ShapeRange((1, 8), (1, 8), (1, 8))}),
)


def save_graph(path, nodes, inputs, outputs, weights, opset=20):
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    return path


@pytest.fixture
def graph(tmp_path):
    """y = relu(x @ w), its weights in a file beside it."""
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float16)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "/layer/MatMul"),
        helper.make_node("Relu", ["h"], ["y"], "/layer/Relu"),
    ]
    shape = (TensorProto.FLOAT16, ["batch", 8])
    return save_graph(tmp_path / "g.onnx", nodes, [("x", *shape)], [("y", *shape)], {"w": weight})


def ask(graph, **changes):
    fields = {"graph": graph, "dtypes": {"x": "float16", "y": "float16"}, "profiles": PROFILES}
    return EngineRequest(**(fields | changes))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_strongly_typed_and_with_no_other_flag(install_fake, graph, version):
    module = install_fake(version)
    built = open_tensorrt().build(ask(graph, timing_cache=b""))
    assert bytes(built.plan) == module.plan
    # bit 1 is STRONGLY_TYPED; bit 0 was EXPLICIT_BATCH, and is gone in 11
    assert ("network", 0b10) in module.calls
    assert [call for call in module.calls if call[0] == "set_flag"] == []
    assert ("clear_flag", "TF32") in module.calls
    assert built.timing_cache == b"+measured"


def test_a_version_without_the_flag_is_strongly_typed_anyway(install_fake, graph):
    module = install_fake("12.0.0")
    del module.NetworkDefinitionCreationFlag
    module.NetworkDefinitionCreationFlag = type("NetworkDefinitionCreationFlag", (), {})
    open_tensorrt().build(ask(graph))
    assert ("network", 0) in module.calls


@pytest.mark.parametrize("version", VERSIONS)
def test_options_reach_the_builder(install_fake, graph, version):
    module = install_fake(version)
    open_tensorrt().build(
        ask(
            graph,
            workspace_bytes=64 << 20,
            optimization_level=2,
            weight_streaming=True,
            timing_cache=b"old",
        )
    )
    assert ("pool", ("WORKSPACE", 64 << 20)) in module.calls
    assert ("set_flag", "WEIGHT_STREAMING") in module.calls
    assert ("level", 2) in module.calls
    assert ("cache", b"old") in module.calls
    profiles = [value for name, value in module.calls if name == "profile"]
    assert profiles == [
        {"x": ((1, 8), (4, 8), (16, 8))},
        {"x": ((1, 8), (1, 8), (1, 8))},
    ]


def test_rtx_is_always_told_what_to_build_for_and_never_given_a_cache(install_fake, graph):
    module = install_fake("1.7.1.116", rtx=True)
    tensorrt = open_tensorrt()
    assert (tensorrt.builder, tensorrt.version) == ("tensorrt_rtx", "1.7.1.116")
    built = tensorrt.build(ask(graph, compute_capability="8.6"))
    assert ("capability", ("SM86", 0)) in module.calls
    assert built.timing_cache is None
    assert not any(name == "cache" for name, _ in module.calls)


def test_capabilities_are_those_the_module_names(install_fake):
    install_fake("1.7.1.116", rtx=True)
    tensorrt = open_tensorrt()
    assert tensorrt.list_capabilities() == ("7.5", "8.6", "12.0")
    assert tensorrt.check_capability("12.0") == "SM120"
    with pytest.raises(
        BackendError, match=r"builds for compute capabilities 7\.5, 8\.6, 12\.0, not"
    ):
        tensorrt.check_capability("8.7")
    install_fake("10.3.0")
    assert open_tensorrt().list_capabilities() == ()
    with pytest.raises(ValueError, match="leave out --compute-capability"):
        open_tensorrt().check_capability("8.7")


def test_a_cache_of_another_gpu_is_told_and_not_used(install_fake, graph):
    install_fake("10.3.0")
    built = open_tensorrt().build(ask(graph, timing_cache=b"other GPU"))
    assert built.timing_cache == b"+measured"
    assert built.warnings == ("the timing cache is of another GPU or TensorRT: made anew",)


def test_parser_errors_name_the_graph_and_each_node_in_one_line(install_fake, graph):
    module = install_fake("10.3.0")
    module.fails = [("/a", "Attention", "one\noutput"), ("/b", "Swish", "unknown")]
    with pytest.raises(BackendError) as caught:
        open_tensorrt().build(ask(graph))
    assert str(caught.value) == (
        "tensorrt 10.3.0 can't read g.onnx: /a (Attention): one output [UNSUPPORTED_NODE]; "
        "/b (Swish): unknown [UNSUPPORTED_NODE]"
    )


def test_a_refused_build_gives_the_logs_errors(install_fake, graph):
    module = install_fake("10.3.0")
    module.plan, module.says = None, [("ERROR", "no kernel"), ("INTERNAL_ERROR", "assert")]
    with pytest.raises(BackendError, match=r"builds no engine of g\.onnx: no kernel; assert"):
        open_tensorrt().build(ask(graph))
    module.says = []
    with pytest.raises(BackendError, match="it gives no reason"):
        open_tensorrt().build(ask(graph))


def test_an_unused_input_refuses_an_engine_that_was_built(install_fake, graph):
    module = install_fake("10.16.1")
    module.says = [("WARNING", "Unused Input: attention_mask"), ("INFO", "Unused Input: no")]
    with pytest.raises(BackendError, match=r"as it stands: Unused Input: attention_mask \(nothing"):
        open_tensorrt().build(ask(graph))


def test_other_warnings_come_with_the_engine(install_fake, graph):
    module = install_fake("10.16.1")
    module.says = [("WARNING", "Tactic needs memory"), ("VERBOSE", "a"), ("INFO", "b")]
    tensorrt = open_tensorrt()
    assert tensorrt.build(ask(graph)).warnings == ("Tactic needs memory",)
    module.says = []
    assert tensorrt.build(ask(graph)).warnings == ()  # of the next graph only its own


def test_a_profile_that_is_refused_is_named(install_fake, graph):
    install_fake("10.3.0")
    bad = (Profile("decode", {"x": ShapeRange((-1, 8), (1, 8), (1, 8))}),)
    with pytest.raises(BackendError, match=r"refuses profile decode of g\.onnx"):
        open_tensorrt().build(ask(graph, profiles=bad))


def test_a_type_that_the_parser_changed_is_an_error(install_fake, graph):
    module = install_fake("10.3.0")
    module.types = {"x": "FLOAT"}
    with pytest.raises(
        BackendError, match=r"x of g\.onnx is float32 in TensorRT's network, the bu"
    ):
        open_tensorrt().build(ask(graph))


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        ({"x": "float16"}, "y of g.onnx is float16 in TensorRT's network, .* it is not there"),
        ({"x": "float16", "y": "float16", "z": "int64"}, "z of g.onnx is missing"),
    ],
)
def test_inputs_and_outputs_are_exactly_the_bundles(install_fake, graph, dtypes, words):
    install_fake("10.3.0")
    with pytest.raises(BackendError, match=words):
        open_tensorrt().build(ask(graph, dtypes=dtypes))


def test_progress_goes_to_the_end(install_fake, graph):
    install_fake("10.3.0")
    told = []
    open_tensorrt().build(ask(graph), lambda share, text: told.append((share, text)))
    assert told[-1] == (1.0, "Building")
    assert [share for share, _ in told] == sorted(share for share, _ in told)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the screen is gone")])
def test_what_a_callback_raises_stops_the_build_and_reaches_the_caller(install_fake, graph, error):
    module = install_fake("10.3.0")
    steps = []

    def report(share, text):
        steps.append(share)
        if share > 0:
            raise error

    with pytest.raises(type(error)):
        open_tensorrt().build(ask(graph), report)
    assert len(steps) == len(module.phases) + 1  # one step was told, then it stopped


def test_control_c_between_two_callbacks_stops_the_build(install_fake, graph, monkeypatch):
    module = install_fake("10.3.0")
    real, before = open_tensorrt(), signal.getsignal(signal.SIGINT)
    build = module.Builder.build_serialized_network

    def interrupted(self, network, config):
        signal.raise_signal(signal.SIGINT)  # in C++: no callback of ours is on the stack
        steps.append(build(self, network, config))
        return steps[-1]

    steps = []
    monkeypatch.setattr(module.Builder, "build_serialized_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        real.build(ask(graph))
    assert steps == [None]  # the builder was told to stop
    assert signal.getsignal(signal.SIGINT) is before


def test_a_build_in_another_thread_leaves_signals_alone(install_fake, graph):
    install_fake("10.3.0")
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(open_tensorrt().build, ask(graph)).result()
    assert len(bytes(built.plan)) > 100
    assert signal.getsignal(signal.SIGINT) is before


def test_tensorrt_goes_before_rtx_where_both_are_there(make_fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", make_fake("10.3.0"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_fake("1.7.1", rtx=True))
    assert open_tensorrt().builder == "tensorrt"
    assert open_tensorrt("tensorrt_rtx").builder == "tensorrt_rtx"


def test_without_any_the_error_says_what_to_install_where(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError) as caught:
        open_tensorrt()
    for words in ("JetPack", "tensorrt-rtx-cu13", "--emit-script"):
        assert words in str(caught.value)


def test_bindings_without_their_library_are_told_as_such(monkeypatch, tmp_path):
    text = "raise ImportError('libnvonnxparser.so.11: cannot open shared object file')"
    (tmp_path / "tensorrt.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendError, match=r"tensorrt can't be loaded: libnvonnxparser\.so\.11"):
        open_tensorrt("tensorrt")


# The real one, on any CPU


@pytest.fixture(scope="session")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    return open_tensorrt("tensorrt_rtx")


def test_rtx_builds_with_weights_from_beside_the_graph(rtx, graph):
    told = []
    built = rtx.build(ask(graph, compute_capability="8.6"), lambda share, text: told.append(share))
    assert np.frombuffer(built.plan, np.uint8).nbytes > 1000
    assert built.warnings == ()
    assert told == sorted(told)
    assert told[-1] > 0.8  # RTX leaves its last phase untold


def test_rtx_without_the_weights_file_names_the_first_of_them(rtx, graph):
    (graph.parent / "w.data").unlink()
    with pytest.raises(BackendError, match=r"can't read g\.onnx: .* initializer: w "):
        rtx.build(ask(graph, compute_capability="8.6"))


def test_rtx_takes_every_option_of_ours(rtx, graph):
    built = rtx.build(
        ask(
            graph,
            compute_capability="12.0",
            workspace_bytes=1 << 30,
            optimization_level=1,
            weight_streaming=True,
        )
    )
    assert len(bytes(built.plan)) > 1000


def test_rtx_warns_of_an_unused_input_and_the_build_is_refused(rtx, tmp_path):
    shape = (TensorProto.FLOAT16, ["batch", 8])
    graph = save_graph(
        tmp_path / "g.onnx",
        [helper.make_node("Relu", ["x"], ["y"], "/Relu")],
        [("x", *shape), ("spare", *shape)],
        [("y", *shape)],
        {},
    )
    extent = PROFILES[0].shapes["x"]
    with pytest.raises(BackendError, match="Unused Input: spare"):
        rtx.build(
            EngineRequest(
                graph,
                {"x": "float16", "spare": "float16", "y": "float16"},
                (Profile("vision", {"x": extent, "spare": extent}),),
                "8.6",
            )
        )


def test_rtx_names_the_node_that_it_can_not_read(rtx, tmp_path):
    """Strong typing is real: a product of two types is an error of the parser."""
    graph = save_graph(
        tmp_path / "g.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "/mixed/MatMul")],
        [("x", TensorProto.FLOAT16, ["batch", 8])],
        [("y", TensorProto.FLOAT16, ["batch", 8])],
        {"w": np.ones((8, 8), np.float32)},
    )
    with pytest.raises(BackendError, match=r"can't read g\.onnx: /mixed/MatMul \(MatMul\): "):
        rtx.build(ask(graph, compute_capability="8.6"))


def test_rtx_reads_a_file_that_is_no_onnx_as_an_error(rtx, tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"\x00\x01 no model")
    with pytest.raises(BackendError, match=r"g\.onnx"):
        rtx.build(ask(tmp_path / "g.onnx", compute_capability="8.6"))


@pytest.mark.parametrize("way", ["raised", "signalled"])
def test_rtx_stops_when_it_is_interrupted(rtx, graph, way):
    pressed = []

    def report(share, text):
        if way == "raised":
            raise KeyboardInterrupt
        if not pressed:
            pressed.append(share)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        rtx.build(ask(graph, compute_capability="8.6"), report)
    rtx.build(ask(graph, compute_capability="8.6"))  # and builds again


def test_rtx_is_one_of_the_two_and_has_what_stands_for_orin_and_thor(rtx):
    assert isinstance(rtx, TensorRt)
    assert {"8.6", "12.0"} <= set(rtx.list_capabilities())
