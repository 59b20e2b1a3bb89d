"""A module with the names that one published version of TensorRT has, and no others.

Which version has which name was read from the binding wheels of each; behaviour is only what the
builder of engines relies on. Whatever it is asked for is recorded in `calls`.
"""

import enum
import types

import onnx

STANDARD_FLAGS = ("WEIGHT_STREAMING", "STRIP_PLAN", "TF32", "REFIT")
PRECISION_FLAGS = ("FP16", "BF16", "INT8", "FP8", "INT4", "OBEY_PRECISION_CONSTRAINTS")
ELEMENT_TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.BOOL: "BOOL",
}


def make_module(version, *, rtx=False, sm_names=("SM75", "SM86", "SM120")):
    """The module `tensorrt` or `tensorrt_rtx` of a version.

    Attributes beside TensorRT's: `calls`, a list of (name, arguments); `says`, messages that the
    builder logs; `fails`, parser errors; `types`, inputs whose type the parser changes; `plan`.
    """
    is_old = not rtx and int(version.partition(".")[0]) < 11
    module = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = version
    module.calls, module.says, module.fails, module.types = [], [], [], {}
    module.plan = b"engine of the fake " * 50
    module.phases = [("Building", None, 2), ("Timing", "Building", 4)]
    flags = [*STANDARD_FLAGS, *(PRECISION_FLAGS if is_old else ())]
    module.BuilderFlag = enum.Enum("BuilderFlag", flags)
    creation = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if is_old else {"STRONGLY_TYPED": 1}
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", creation)
    module.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "TACTIC_DRAM"])
    module.DataType = enum.Enum("DataType", ["FP8", "INT8", *ELEMENT_TYPES.values()])
    if rtx:
        module.ComputeCapability = enum.Enum("ComputeCapability", ["NONE", "CURRENT", *sm_names])
    module.ILogger = make_logger_class()
    module.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
    module.Builder = make_builder_class(module, rtx, is_old)
    module.OnnxParser = make_parser_class(module)
    return module


def make_logger_class():
    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

        def __init__(self):
            self.ready = True

    return ILogger


def say(module, logger, level, text):
    logger.log(module.ILogger.Severity[level], text)


class Tensor:
    def __init__(self, name, dtype, shape):
        self.name, self.dtype, self.shape = name, dtype, shape


def make_builder_class(module, rtx, is_old):
    class Network:
        def __init__(self):
            self.inputs, self.outputs = [], []

        num_inputs = property(lambda self: len(self.inputs))
        num_outputs = property(lambda self: len(self.outputs))

        def get_input(self, index):
            return self.inputs[index]

        def get_output(self, index):
            return self.outputs[index]

    class Profile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, name, smallest, usual, largest):
            self.shapes[name] = (smallest, usual, largest)

    class Config:
        """Only what is settable: an attribute that TensorRT lacks must not be invented."""

        __slots__ = (
            "builder_optimization_level",
            "cache",
            "profiles",
            "progress_monitor",
            *(("int8_calibrator",) if is_old else ()),
            *(("num_compute_capabilities",) if rtx else ()),
        )

        def __init__(self):
            self.profiles, self.cache, self.progress_monitor = [], None, None

        def set_flag(self, flag):
            module.calls.append(("set_flag", flag.name))

        def clear_flag(self, flag):
            module.calls.append(("clear_flag", flag.name))

        def add_optimization_profile(self, profile):
            sizes = [extent for shapes in profile.shapes.values() for extent in shapes]
            if any(size < 0 for extent in sizes for size in extent):
                return -1
            self.profiles.append(profile.shapes)
            module.calls.append(("profile", profile.shapes))
            return len(self.profiles) - 1

        def set_memory_pool_limit(self, pool, size):
            module.calls.append(("pool", (pool.name, size)))

        def create_timing_cache(self, content):
            if rtx:
                raise AssertionError("tensorrt_rtx would look for a GPU")
            return bytes(content)

        def set_timing_cache(self, cache, ignore_mismatch):
            module.calls += [("cache", cache), ("ignore_mismatch", ignore_mismatch)]
            is_other = cache.startswith(b"other GPU") and not ignore_mismatch
            self.cache = None if is_other else cache
            return not is_other

        def get_timing_cache(self):
            if self.cache is None:
                return None
            measured = self.cache + b"+measured"
            return types.SimpleNamespace(serialize=lambda: memoryview(measured))

    if rtx:

        def set_compute_capability(self, capability, index):
            module.calls.append(("capability", (capability.name, index)))

        Config.set_compute_capability = set_compute_capability

    class Builder:
        def __init__(self, logger):
            assert logger.ready  # a subclass has to call ILogger.__init__
            self.logger = logger

        def create_network(self, flags):
            module.calls.append(("network", flags))
            return Network()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            module.calls.append(("level", getattr(config, "builder_optimization_level", None)))
            for level, text in module.says:
                say(module, self.logger, level, text)
            if config.progress_monitor is not None and not run_phases(config.progress_monitor):
                return None
            return None if module.plan is None else memoryview(module.plan)

    def run_phases(monitor):
        for name, parent, steps in module.phases:
            monitor.phase_start(name, parent, steps)
        for name, _, steps in reversed(module.phases):
            for step in range(steps):
                if not monitor.step_complete(name, step):
                    return False
            monitor.phase_finish(name)
        return True

    return Builder


def make_parser_class(module):
    class OnnxParser:
        def __init__(self, network, logger):
            self.network, self.logger = network, logger

        num_errors = property(lambda self: len(module.fails))

        def get_error(self, index):
            node, operator, text = module.fails[index]
            return types.SimpleNamespace(
                node_name=lambda: node,
                node_operator=lambda: operator,
                node=lambda: 7,
                code=lambda: "ErrorCode.UNSUPPORTED_NODE",
                desc=lambda: text,
            )

        def parse_from_file(self, path):
            assert isinstance(path, str)
            if module.fails:
                return False
            graph = onnx.load(path, load_external_data=False).graph
            for values, tensors in (
                (graph.input, self.network.inputs),
                (graph.output, self.network.outputs),
            ):
                for value in values:
                    name = ELEMENT_TYPES[value.type.tensor_type.elem_type]
                    dtype = module.DataType[module.types.get(value.name, name)]
                    sides = value.type.tensor_type.shape.dim
                    shape = tuple(-1 if side.dim_param else side.dim_value for side in sides)
                    tensors.append(Tensor(value.name, dtype, shape))
            return True

    return OnnxParser
