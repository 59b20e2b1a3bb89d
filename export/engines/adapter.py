"""Build one serialized engine from one ONNX file, by the TensorRT at hand.

`tensorrt` 10.3 to 11.x and `tensorrt_rtx` share one way: a strongly typed network, where the
graph's own types decide what is computed in what, and no flag, calibrator or constraint adds to
that. What only some of them have is asked of the module, not of a version number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ...runtime.backends.trt.engine_set import Builder, Profile
from ...runtime.backends.trt.tensorrt_engine import DTYPES
from ...runtime.bundle.manifest import Dtype
from ...runtime.errors import BackendError
from .build_progress import PhaseTracker, ShareDone
from .callbacks import Log, deferred_interrupt, make_logger, make_monitor
from .messages import (
    Message,
    describe_parser_error,
    find_refusals,
    list_errors,
    list_warnings,
)

BUILDERS: tuple[Builder, ...] = ("tensorrt", "tensorrt_rtx")
INSTALL = (
    "on a Jetson it comes with JetPack (apt install python3-libnvinfer, and a virtual environment "
    "made with --system-site-packages); elsewhere pip install tensorrt, or "
    "pip install tensorrt-rtx-cu13, which also builds where there is no GPU; "
    "or let --emit-script write what builds on the device"
)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What one engine is made of.

    Attributes:
        graph: ONNX file; its weights lie in files beside it.
        dtypes: of every input and output, as the bundle says.
        profiles: shapes to build for, in order.
        compute_capability: tensorrt_rtx: what to build for, "8.6". None: tensorrt, for this GPU.
        workspace_bytes: most scratch memory of a layer; None: no limit.
        optimization_level: None: the builder's own.
        weight_streaming: weights may stay in the host's memory.
        timing_cache: kernels measured before; None: measure all.
        timing_cache_file: where they are from, if it was named: one that is not TensorRT's, or of
            another GPU, is refused and not written over.
        accepted: parts of warnings that must not end the build.
    """

    graph: Path
    dtypes: Mapping[str, Dtype]
    profiles: tuple[Profile, ...]
    compute_capability: str | None = None
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    weight_streaming: bool = False
    timing_cache: bytes | None = None
    timing_cache_file: Path | None = None
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What came of it.

    Attributes:
        plan: the serialized engine: anything with a buffer.
        warnings: what TensorRT warned of and what does no harm.
        timing_cache: to keep for the next build; None: nothing was measured.
    """

    plan: Any
    warnings: tuple[str, ...]
    timing_cache: bytes | None


class TensorRt:
    """The module and its logger.

    Attributes:
        builder: which of the two it is.
        version: "10.3.0", "1.7.1.116".
    """

    def __init__(self, module: Any, builder: Builder) -> None:
        self.builder: Builder = builder
        self.version = str(module.__version__)
        self._module = module
        self._log = Log()
        self._logger = make_logger(module, self._log)

    def list_capabilities(self) -> tuple[str, ...]:
        """What tensorrt_rtx builds for, as in ("7.5", "8.6"); none: tensorrt asks the GPU."""
        names = getattr(getattr(self._module, "ComputeCapability", None), "__members__", {})
        found = (name[2:] for name in names if name.startswith("SM"))
        return tuple(f"{digits[:-1]}.{digits[-1]}" for digits in found)

    def check_capability(self, wanted: str) -> str:
        """The name tensorrt_rtx has for what it is to build for: "8.6" -> "SM86".

        It must always be told: without, it also builds what no GPU can compute.

        Raises:
            BackendError: it builds for nothing like it.
            ValueError: this is tensorrt, which has no choice.
        """
        if self.builder == "tensorrt":
            raise ValueError(
                "tensorrt builds for the GPU it runs on: leave out --compute-capability, or "
                "build with --builder tensorrt_rtx"
            )
        known = self.list_capabilities()
        if wanted not in known:
            raise BackendError(
                f"{self} builds for compute capabilities {', '.join(known)}, not for {wanted}: "
                "Jetsons and data centers need tensorrt"
            )
        return f"SM{wanted.replace('.', '')}"

    def build(self, request: EngineRequest, report: ShareDone | None = None) -> BuiltEngine:
        """Parse and build.

        Args:
            request: the graph and how to build it.
            report: called with the share that is done; what it raises ends the build.

        Raises:
            BackendError: TensorRT refused the graph, or would not build what it says.
        """
        self._log.start()
        with deferred_interrupt(self._log):
            return self._build(request, report)

    def __str__(self) -> str:
        """As errors name it."""
        return f"{self.builder} {self.version}"

    def _build(self, request: EngineRequest, report: ShareDone | None) -> BuiltEngine:
        log, builder = self._log, self._module.Builder(self._logger)
        # Weights stay in the parser: it has to live until the engine is there.
        network, _parser = self._parse(builder, request)
        _check_tensors(network, request)
        config = self._configure(builder, request)
        # Without a monitor a build can't be stopped; the configuration keeps no reference to it.
        tracker = PhaseTracker(report or (lambda *_: None))
        monitor = make_monitor(self._module, tracker, log)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if log.interrupt is not None:
            raise log.interrupt
        if plan is None:
            raise BackendError(f"{self} builds no engine of {request.graph.name}: {self._why()}")
        self._refuse_warnings(request)
        measured = _read_timing_cache(config) if self.builder == "tensorrt" else None
        warnings = list_warnings(log.messages, request.accepted)
        return BuiltEngine(plan, tuple(warnings), measured)

    def _parse(self, builder: Any, request: EngineRequest) -> tuple[Any, Any]:
        """Network and parser; read by its name, so that weights are mapped from beside it."""
        typed = getattr(self._module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = self._module.OnnxParser(network, self._logger)
        graph = request.graph
        is_read = parser.parse_from_file(str(graph))
        if self._log.interrupt is not None:
            raise self._log.interrupt
        if not is_read:
            errors = [describe_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            raise BackendError(
                f"{self} can't read {graph.name}: {'; '.join(errors) or self._why()}"
            )
        self._refuse_warnings(request)
        return network, parser

    def _configure(self, builder: Any, request: EngineRequest) -> Any:
        module, config = self._module, builder.create_builder_config()
        config.clear_flag(module.BuilderFlag.TF32)  # float32 in the graph is float32
        if request.compute_capability is not None:
            config.num_compute_capabilities = 1
            wanted = self.check_capability(request.compute_capability)
            config.set_compute_capability(getattr(module.ComputeCapability, wanted), 0)
        for profile in request.profiles:
            shapes = builder.create_optimization_profile()
            for name, extent in profile.shapes.items():
                shapes.set_shape(name, extent.min, extent.opt, extent.max)
            if config.add_optimization_profile(shapes) < 0:
                raise BackendError(
                    f"{self} refuses profile {profile.use} of {request.graph.name}: {self._why()}"
                )
        if request.workspace_bytes is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, request.workspace_bytes)
        if request.optimization_level is not None:
            config.builder_optimization_level = request.optimization_level
        if request.weight_streaming:
            config.set_flag(module.BuilderFlag.WEIGHT_STREAMING)
        elif hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            # Of tensorrt_rtx, and not with the other: else no CUDA graph is recorded of the engine
            config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if self.builder == "tensorrt":  # the other one measures nothing, and would look for a GPU
            _set_timing_cache(config, request, self._log)
        return config

    def _refuse_warnings(self, request: EngineRequest) -> None:
        if refused := find_refusals(self._log.messages, request.accepted):
            raise BackendError(
                f"{self} would not build {request.graph.name} as it stands: {'; '.join(refused)}; "
                "if you know it to be harmless, --accept-warning goes on"
            )

    def _why(self) -> str:
        return "; ".join(list_errors(self._log.messages)) or "it gives no reason"


def open_tensorrt(wanted: Builder | None = None) -> TensorRt:
    """Load TensorRT.

    Args:
        wanted: which one; None: tensorrt, and tensorrt_rtx where that is missing.

    Raises:
        BackendError: none is installed, or it can't be loaded.
    """
    reasons = []
    for builder in BUILDERS if wanted is None else (wanted,):
        try:
            return TensorRt(import_module(builder), builder)
        except ModuleNotFoundError as error:
            reasons.append(str(error))
        except (ImportError, OSError) as error:  # bindings without their library
            reasons.append(f"{builder} can't be loaded: {error}")
    raise BackendError(f"no TensorRT here ({'; '.join(reasons)}): {INSTALL}")


def _check_tensors(network: Any, request: EngineRequest) -> None:
    """See that what the parser made has the inputs and outputs that the runtime will bind.

    Raises:
        BackendError: one is missing, too many, or of another type.
    """
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = {str(each.name): DTYPES.get(str(each.dtype).rpartition(".")[2]) for each in tensors}
    for name in sorted(found.keys() | request.dtypes.keys()):
        got, needed = found.get(name, "missing"), request.dtypes.get(name, "not there")
        if got != needed:
            raise BackendError(
                f"{name} of {request.graph.name} is {got} in TensorRT's network, the bundle says "
                f"it is {needed}: export it again for this TensorRT"
            )


def _set_timing_cache(config: Any, request: EngineRequest, log: Log) -> None:
    """Use what was measured before; of another GPU or TensorRT it is told and left.

    Raises:
        BackendError: it is in a file that was named: that is somebody's, and would be lost.
    """
    content, file = request.timing_cache, request.timing_cache_file
    cache = config.create_timing_cache(content or b"")
    is_used = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    if not is_used and content:
        if file is not None:
            raise BackendError(
                f"--timing-cache {file} is of another GPU or TensorRT, or is no timing cache at "
                "all: it is left alone, name another file"
            )
        log.messages.append(
            Message("warning", "the timing cache is of another GPU or TensorRT: made anew")
        )
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _read_timing_cache(config: Any) -> bytes | None:
    cache = config.get_timing_cache()
    return None if cache is None else bytes(cache.serialize())
