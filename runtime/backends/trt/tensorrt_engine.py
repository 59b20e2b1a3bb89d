"""TensorRT (10.3 and later) and TensorRT-RTX behind the protocols of `engine.py`.

The only file of the runtime that knows their Python packages, whose names for what is used here are
the same in all those versions.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from typing import Any

from ...bundle.manifest import Dtype
from ...errors import BackendError
from .choose import BUILDER_NAMES
from .engine_set import Builder

# TensorRT's names of types -> ours
DTYPES: dict[str, Dtype] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
}
_LOG = logging.getLogger(__name__)
_MAX_ERRORS = 8  # kept; the first of a chain of them is the cause
# TensorRT's registry of plugins keeps a pointer to the first logger, and never gives it up.
_LOGGERS: list[Any] = []


def find_builders() -> dict[Builder, str]:
    """The installed TensorRT packages and their versions."""
    found: dict[Builder, str] = {}
    for name in BUILDER_NAMES:
        try:
            found[name] = str(import_module(name).__version__)
        except (ImportError, OSError) as error:  # OSError: a library that it needs is missing
            if not isinstance(error, ModuleNotFoundError):
                _LOG.warning("%s can't be imported: %s", name, error)
    return found


class TensorRt:
    """Deserializes engines of one TensorRT; an `EngineLoader`."""

    def __init__(self, builder: Builder, *, stream_weights: bool = False) -> None:
        """Start its runtime.

        Args:
            builder: which package.
            stream_weights: leave as many weights in the host's memory as TensorRT sees fit, of
                engines that were built for it.

        Raises:
            BackendError: it can't be imported or started.
        """
        self._name = BUILDER_NAMES[builder]
        self._stream_weights = stream_weights
        try:
            self._trt = import_module(builder)
        except (ImportError, OSError) as error:
            raise BackendError(f"{self._name} can't be imported: {error}") from error
        self._errors: list[str] = []
        self._logger = _make_logger(self._trt, self._errors)
        self._runtime = self._call("the runtime", lambda: self._trt.Runtime(self._logger))

    def __call__(self, data: mmap.mmap, where: str) -> TensorRtEngine:
        """Deserialize an engine; see `EngineLoader`."""
        engine = self._call(where, lambda: self._runtime.deserialize_cuda_engine(data))
        if self._stream_weights and engine.streamable_weights_size > 0:
            # Before any context: the size of scratch memory depends on it.
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return TensorRtEngine(self._trt, engine, where, self._errors)

    def _call(self, subject: str, function: Any) -> Any:
        """What TensorRT makes: it says None where it fails, and why only through its logger."""
        self._errors.clear()
        try:
            made = function()
        except Exception as error:  # pybind11 raises what it likes for a null pointer
            self._errors.append(str(error))
            made = None
        if made is None:
            version = self._trt.__version__
            raise BackendError(f"{self._name} {version} refuses {subject}: {_join(self._errors)}")
        return made


class TensorRtEngine:
    """An engine of TensorRT; see `Engine`."""

    def __init__(self, trt: Any, engine: Any, where: str, errors: list[str]) -> None:
        """Read names and types."""
        self._trt = trt
        self._engine = engine
        self._where = where
        self._errors = errors
        self._inputs: dict[str, Dtype] = {}
        self._outputs: dict[str, Dtype] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = DTYPES.get(engine.get_tensor_dtype(name).name)
            if dtype is None or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise BackendError(
                    f"{where}: {name} is {engine.get_tensor_dtype(name).name} at "
                    f"{engine.get_tensor_location(name).name}: not a value of the bundle's graphs"
                )
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs)[name] = dtype

    @property
    def inputs(self) -> Mapping[str, Dtype]:
        """Names and types."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, Dtype]:
        """Names and types."""
        return self._outputs

    @property
    def num_profiles(self) -> int:
        """Optimization profiles it was built for."""
        return self._engine.num_optimization_profiles

    def measure_scratch(self) -> int:
        """Bytes of scratch memory that a context needs, whatever its profile.

        The documentation of `set_device_memory` asks for no less, and 10.7 was seen to crash when
        it is asked for a profile's own size.
        """
        num_bytes = getattr(self._engine, "device_memory_size_v2", None)
        return self._engine.device_memory_size if num_bytes is None else num_bytes

    def make_context(self) -> TensorRtContext:
        """A context without memory of its own."""
        self._errors.clear()
        context = self._engine.create_execution_context(self._how_to_run)
        if context is None:
            raise BackendError(f"{self._where}: no execution context: {_join(self._errors)}")
        return TensorRtContext(context, self._where, self._errors)

    @cached_property
    def _how_to_run(self) -> Any:
        """What contexts are made with: their memory is ours, their kernels the final ones.

        TensorRT-RTX compiles kernels for the shapes it gets, by default beside runs on slower ones:
        a CUDA graph would keep those that it was recorded with.
        """
        allocation = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        specialization = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is None:
            return allocation
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        return config


class TensorRtContext:
    """An execution context of TensorRT; see `Context`."""

    def __init__(self, context: Any, where: str, errors: list[str]) -> None:
        """Take over the context."""
        self._context = context
        self._where = where
        self._errors = errors

    def set_profile(self, profile: int, stream: int) -> None:
        """Choose the optimization profile."""
        is_done = self._context.set_optimization_profile_async(profile, stream)
        self._check(is_done, f"optimization profile {profile}")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Of an input."""
        self._check(self._context.set_input_shape(name, shape), f"shape {shape} of {name}")

    def get_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, when all inputs have theirs."""
        shape = tuple(self._context.get_tensor_shape(name))
        self._check(all(size >= 0 for size in shape), f"inputs that leave {name} as {shape}")
        return shape

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output is on the device."""
        self._check(self._context.set_tensor_address(name, address), f"address of {name}")

    def set_scratch(self, address: int, num_bytes: int) -> None:
        """Memory for what is between inputs and outputs."""
        self._context.set_device_memory(address, num_bytes)

    def can_capture(self, stream: int) -> bool:
        """Whether a CUDA graph may record `enqueue`: only TensorRT-RTX can be asked."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream."""
        self._check(self._context.execute_async_v3(stream), "a run")

    def _check(self, is_done: bool, what: str) -> None:
        if not is_done:
            message = _join(self._errors)
            self._errors.clear()
            raise BackendError(f"{self._where} refuses {what}: {message}")


def _make_logger(trt: Any, errors: list[str]) -> Any:
    """TensorRT's messages: errors kept for the exception to come, warnings to Python's logging."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                if len(errors) < _MAX_ERRORS:
                    errors.append(msg.strip())
            elif severity == trt.ILogger.Severity.WARNING:
                _LOG.info("%s", msg.strip())

    logger = Logger()
    _LOGGERS.append(logger)
    return logger


def _join(errors: list[str]) -> str:
    return "; ".join(dict.fromkeys(errors)) or "it does not say why"
