"""Open a graph's file as an ONNX Runtime session: provider, threads, options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...bundle.manifest import GraphSpec, TargetRecord
from ...errors import BackendError
from .exact_products import make_entries

try:
    import onnxruntime as ort
except ImportError as error:
    raise BackendError(
        "onnxruntime is not installed: pip install 'vlmedge[cpu]' (or 'vlmedge[gpu]' for CUDA)"
    ) from error

__all__ = [
    "PROVIDERS",
    "check_cache",
    "check_target",
    "choose_providers",
    "name_dtype",
    "open_session",
    "ort",
]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INT8_CACHE_SINCE = (1, 27)  # before it the CPU's attention takes a cache of floats only
_LOG_FATAL_ONLY = 4  # errors are raised, they need not be on stderr too


def open_session(
    path: Path, providers: Sequence[str], num_threads: int, *, keep_qdq: bool
) -> ort.InferenceSession:
    """Load a graph.

    Args:
        path: of the graph, its weights beside it.
        providers: ONNX Runtime's names, the preferred one first; its own fallback to another is
            off, as it prints on stdout.
        num_threads: of one operator.
        keep_qdq: run QuantizeLinear and DequantizeLinear as they stand. ONNX Runtime would fuse
            float8 ones into integer products, and then refuse its own graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = _LOG_FATAL_ONLY
    for key, value in make_entries(path, keep_qdq=keep_qdq).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)


def choose_providers(asked: Sequence[str] | str | None) -> tuple[str, ...]:
    """ONNX Runtime's names of the providers to use, the CPU always last.

    Raises:
        BackendError: one that this onnxruntime doesn't have.
    """
    available = ort.get_available_providers()
    cpu, cuda = PROVIDERS["cpu"], PROVIDERS["cuda"]
    if asked is None:
        return (cuda, cpu) if cuda in available else (cpu,)
    names = [asked] if isinstance(asked, str) else list(asked)
    chosen = [PROVIDERS.get(name.lower(), name) for name in names]
    for name in chosen:
        if name not in available:
            raise BackendError(
                f"onnxruntime {ort.__version__} has no {name}, it has {', '.join(available)}"
            )
    return tuple(dict.fromkeys((*chosen, cpu)))


def name_dtype(ort_type: str) -> str:
    """The manifest's name of a type that onnxruntime calls tensor(...)."""
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "float8e4m3fn": "float8_e4m3fn"}.get(name, name)


def check_cache(spec: GraphSpec, provider: str, version: str = ort.__version__) -> None:
    """See that this onnxruntime has a kernel for the graph's cache: its own error is no help.

    Raises:
        BackendError: it is too old.
    """
    if provider != PROVIDERS["cpu"] or not any(tensor.dtype == "int8" for tensor in spec.inputs):
        return
    if tuple(int(part) for part in version.split(".")[:2]) < INT8_CACHE_SINCE:
        needed = ".".join(map(str, INT8_CACHE_SINCE))
        raise BackendError(
            f"{spec.file} has an int8 KV cache, which needs onnxruntime {needed} or newer on a "
            f"CPU; this is {version}: pip install -U onnxruntime"
        )


def check_target(target: TargetRecord | None, provider: str) -> None:
    """See that graphs written for TensorRT can run here: for checks, on a CPU.

    Raises:
        BackendError: they can't; says which can.
    """
    if target is None:
        return
    if provider != PROVIDERS["cpu"]:
        raise BackendError(
            f"graphs for {target.name} run in TensorRT, or for checks with the provider cpu; for "
            "CUDA export the bundle without --target"
        )
    if target.dtype == "bfloat16":
        raise BackendError(
            "onnxruntime's CPU has no bfloat16: for checks here, export with --dtype fp32 or fp16"
        )
