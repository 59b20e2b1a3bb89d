"""Our calls of TensorRT's Python package, against a fake of it."""

import gc
import logging
import sys
import weakref
from types import SimpleNamespace

import pytest

from vlmedge.runtime.backends.trt import tensorrt_engine
from vlmedge.runtime.backends.trt.tensorrt_engine import TensorRt, TensorRtContext, find_builders
from vlmedge.runtime.errors import BackendError


class Named:
    """A member of one of TensorRT's enums."""

    def __init__(self, name):
        self.name = name


def make_trt(**engine):
    """A module like tensorrt, whose runtime deserializes to an engine of these attributes."""
    severity = SimpleNamespace(
        **{name: Named(name) for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")}
    )
    trt = SimpleNamespace(
        __version__="10.3.0",
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        TensorLocation=SimpleNamespace(DEVICE=Named("DEVICE"), HOST=Named("HOST")),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
    )
    trt.ILogger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
    trt.messages, trt.engine = [], FakeTrtEngine(trt, **engine)

    class Runtime:
        def __init__(self, logger):
            trt.logger = logger

        def deserialize_cuda_engine(self, data):
            for kind, text in trt.messages:
                trt.logger.log(getattr(severity, kind), text)
            return trt.engine

    trt.Runtime = Runtime
    return trt


class FakeTrtEngine:
    streamable_weights_size = 0
    num_optimization_profiles = 2
    device_memory_size_v2 = 1001

    def __init__(self, trt, tensors=(), **attributes):
        self.trt = trt
        self.tensors = dict(tensors)
        self.num_io_tensors = len(self.tensors)
        self.context = FakeTrtContext()
        for name, value in attributes.items():
            setattr(self, name, value)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return self.tensors[name][0]

    def get_tensor_dtype(self, name):
        return Named(self.tensors[name][1])

    def get_tensor_location(self, name):
        at = self.tensors[name][2] if len(self.tensors[name]) > 2 else "DEVICE"
        return getattr(self.trt.TensorLocation, at)

    def get_weight_streaming_automatic_budget(self):
        return 77

    def create_execution_context(self, strategy):
        assert strategy == "user"
        return self.context


class FakeTrtContext:
    def __init__(self):
        self.calls = []
        self.answers = {}

    def __getattr__(self, name):
        if name.startswith("is_"):
            raise AttributeError(name)

        def call(*args):
            self.calls.append((name, *args))
            return self.answers.get(name, True)

        return call


TENSORS = {
    "inputs_embeds": ("in", "FLOAT"),
    "position_ids": ("in", "INT64"),
    "attention_mask": ("in", "BOOL"),
    "past_key_values.0.key": ("in", "BF16"),
    "pixel_values": ("in", "UINT8"),
    "half": ("in", "HALF"),
    "logits": ("out", "FLOAT"),
}


@pytest.fixture
def trt(monkeypatch):
    made = make_trt(tensors=TENSORS)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    return made


def test_names_and_types_are_the_manifests(trt):
    engine = TensorRt("tensorrt")(b"plan", "x.engine")
    assert engine.inputs == {
        "inputs_embeds": "float32",
        "position_ids": "int64",
        "attention_mask": "bool",
        "past_key_values.0.key": "bfloat16",
        "pixel_values": "uint8",
        "half": "float16",
    }
    assert engine.outputs == {"logits": "float32"}
    assert engine.num_profiles == 2
    assert engine.measure_scratch() == 1001


@pytest.mark.parametrize("num_bytes", [0, 77])
def test_scratch_is_the_whole_engines_as_set_device_memory_asks(trt, monkeypatch, num_bytes):
    engine = TensorRt("tensorrt")(b"plan", "x.engine")
    trt.engine.device_memory_size = 55
    trt.engine.device_memory_size_v2 = num_bytes
    assert engine.measure_scratch() == num_bytes
    del trt.engine.device_memory_size_v2
    monkeypatch.delattr(FakeTrtEngine, "device_memory_size_v2")
    assert engine.measure_scratch() == 55


def test_each_call_is_tensorrts_own_with_its_arguments(trt):
    context = TensorRt("tensorrt")(b"plan", "x.engine").make_context()
    trt.engine.context.answers["get_tensor_shape"] = [2, 400]
    context.set_profile(1, 11)
    context.set_shape("inputs_embeds", (1, 2, 3))
    assert context.get_shape("logits") == (2, 400)
    context.set_address("logits", 4096)
    context.set_scratch(8192, 512)
    context.enqueue(11)
    assert trt.engine.context.calls == [
        ("set_optimization_profile_async", 1, 11),
        ("set_input_shape", "inputs_embeds", (1, 2, 3)),
        ("get_tensor_shape", "logits"),
        ("set_tensor_address", "logits", 4096),
        ("set_device_memory", 8192, 512),
        ("execute_async_v3", 11),
    ]


@pytest.mark.parametrize(
    ("function", "call", "what"),
    [
        ("set_optimization_profile_async", lambda c: c.set_profile(1, 2), "optimization profile 1"),
        ("set_input_shape", lambda c: c.set_shape("x", (1,)), r"shape \(1,\) of x"),
        ("set_tensor_address", lambda c: c.set_address("x", 1), "address of x"),
        ("execute_async_v3", lambda c: c.enqueue(1), "a run"),
    ],
)
def test_a_refusal_has_tensorrts_words_once(trt, function, call, what):
    errors = []
    context = TensorRtContext(trt.engine.context, "x.engine", errors)
    trt.engine.context.answers[function] = False
    errors.extend(["API usage", "API usage", "second"])
    with pytest.raises(BackendError, match=rf"x\.engine refuses {what}: API usage; second$"):
        call(context)
    with pytest.raises(BackendError, match="does not say why"):
        call(context)


def test_a_shape_that_is_not_known_yet_is_an_error(trt):
    trt.engine.context.answers["get_tensor_shape"] = [-1, 400]
    context = TensorRtContext(trt.engine.context, "x.engine", [])
    with pytest.raises(BackendError, match=r"logits as \(-1, 400\)"):
        context.get_shape("logits")


@pytest.mark.parametrize("shape", [("in", "INT4"), ("in", "INT64", "HOST")])
def test_values_that_the_graphs_do_not_have_are_refused(trt, shape):
    trt.engine.tensors["odd"] = shape
    trt.engine.num_io_tensors += 1
    with pytest.raises(BackendError, match=f"odd is {shape[1]} at"):
        TensorRt("tensorrt")(b"plan", "x.engine")


def test_an_engine_that_is_refused_is_told_with_tensorrts_reasons(trt):
    trt.messages = [("WARNING", "careful"), ("ERROR", "other version\n"), ("ERROR", "magic tag")]
    trt.engine = None
    with pytest.raises(BackendError) as error:
        TensorRt("tensorrt")(b"plan", "x.engine")
    assert str(error.value) == "TensorRT 10.3.0 refuses x.engine: other version; magic tag"


class RuntimeConfig:
    """That of TensorRT-RTX."""

    dynamic_shapes_kernel_specialization_strategy = "lazy"
    allocation = "static"

    def set_execution_context_allocation_strategy(self, strategy):
        self.allocation = strategy


def test_contexts_of_rtx_have_their_final_kernels_at_once(trt):
    """Or a CUDA graph would go on with those that it was recorded with."""
    configs = []

    def create_execution_context(config):
        configs.append(config)
        return trt.engine.context

    trt.engine.create_runtime_config = RuntimeConfig
    trt.engine.create_execution_context = create_execution_context
    trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    engine = TensorRt("tensorrt")(b"plan", "x.engine")
    engine.make_context().enqueue(3)
    engine.make_context()
    assert [config.allocation for config in configs] == ["user"] * 2
    strategies = [config.dynamic_shapes_kernel_specialization_strategy for config in configs]
    assert strategies == ["eager"] * 2
    assert trt.engine.context.calls == [("execute_async_v3", 3)]


def test_contexts_of_a_tensorrt_without_such_kernels_are_made_as_ever(trt):
    """Later versions of TensorRT have a configuration too, of other things."""
    trt.engine.create_runtime_config = None  # not called
    engine = TensorRt("tensorrt")(b"plan", "x.engine")
    engine.make_context().enqueue(3)
    assert trt.engine.context.calls == [("execute_async_v3", 3)]


def test_no_context_is_an_error(trt):
    engine = TensorRt("tensorrt")(b"plan", "x.engine")
    trt.engine.context = None
    with pytest.raises(BackendError, match="no execution context"):
        engine.make_context()


def test_warnings_go_to_logging_and_not_to_stderr(trt, caplog, capfd):
    trt.messages = [("WARNING", "lazy loading is off"), ("INFO", "loaded")]
    with caplog.at_level(logging.INFO):
        TensorRt("tensorrt")(b"plan", "x.engine")
    assert caplog.messages == ["lazy loading is off"]
    assert capfd.readouterr() == ("", "")


def test_a_logger_outlives_its_runtime(trt, caplog):
    """TensorRT's registry of plugins goes on writing to it."""
    runtime = TensorRt("tensorrt")
    logger = weakref.ref(trt.logger)
    trt.logger = None
    del runtime
    gc.collect()
    assert logger() is not None
    with caplog.at_level(logging.INFO):
        logger().log(trt.ILogger.Severity.WARNING, "a plugin is registered twice")
    assert caplog.messages == ["a plugin is registered twice"]


@pytest.mark.parametrize(("is_asked", "size", "budget"), [(True, 9, 77), (False, 9, None)])
def test_weights_are_streamed_where_it_is_asked(trt, is_asked, size, budget):
    trt.engine.streamable_weights_size = size
    trt.engine.weight_streaming_budget_v2 = None
    TensorRt("tensorrt", stream_weights=is_asked)(b"plan", "x.engine")
    assert trt.engine.weight_streaming_budget_v2 == budget


def test_recording_is_asked_for_where_it_can_be():
    asked = SimpleNamespace(is_stream_capturable=lambda stream: stream == 5)
    context = TensorRtContext(asked, "x.engine", [])
    assert context.can_capture(5)
    assert not context.can_capture(6)
    assert TensorRtContext(SimpleNamespace(), "x.engine", []).can_capture(6)


def test_only_what_is_installed_is_found(trt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert find_builders() == {"tensorrt": "10.3.0"}
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert find_builders() == {}


def test_a_package_whose_library_is_missing_is_told(monkeypatch, caplog):
    def fail(name):
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_engine, "import_module", fail)
    assert find_builders() == {}
    assert "libnvinfer.so.10" in caplog.text
    with pytest.raises(BackendError, match=r"libnvinfer\.so\.10"):
        TensorRt("tensorrt")
