"""Build a set of engines into a bundle of flavor "tensorrt", for one GPU and one TensorRT.

One graph after another is parsed, built, written and given up, so that the most memory is that of
the largest; `settings.split` makes the largest smaller.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...quant.files.source_stamp import read_stamped
from ...quant.files.staged_folder import write_text
from ...runtime import __version__
from ...runtime.backends.trt.engine_set import (
    ENGINE_SET_NAME,
    ENGINES_FOLDER,
    SCHEMA_VERSION,
    Builder,
    EngineRecord,
    EngineSet,
    Gpu,
    Profile,
    parse_engine_set,
    record_weights,
    to_json,
)
from ...runtime.bundle.hash_check import check_hashes
from ...runtime.bundle.manifest import Manifest
from ...runtime.errors import BackendError
from ...runtime.peak_memory import read_peak_bytes
from .adapter import BuiltEngine, EngineRequest, TensorRt, open_tensorrt
from .compatibility import check_dtype, check_precisions, check_versions
from .engine_folder import name_set, staged_set, write_engine
from .profiles import check_target, derive_extents, shape_profiles
from .settings import BuildSettings
from .steps import Step, make_steps
from .timing_cache import TimingCache

PARTS_FOLDER = ".parts"

# (engines done, engines to do, share of the current one, what is being done)
Progress = Callable[[int, int, float, str], None]


@dataclass(frozen=True, slots=True)
class Build:
    """What a build made.

    Attributes:
        folder: of the set.
        seconds: of each engine, by its name.
        peak_bytes: the most memory that this process had while it built each.
        warnings: of TensorRT while it made each.
    """

    folder: Path
    engine_set: EngineSet
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    warnings: dict[str, tuple[str, ...]]


def build_engines(
    bundle: str | Path,
    settings: BuildSettings | None = None,
    builder: Builder | None = None,
    progress: Progress | None = None,
) -> Build:
    """Build the engines of a bundle; an old set of the same GPU, TensorRT and type is replaced.

    Args:
        bundle: of flavor "tensorrt".
        settings: how large requests may be, and how to build.
        builder: which TensorRT; None: tensorrt, or tensorrt_rtx where that is missing.
        progress: called while TensorRT works; what it raises ends the build.

    Raises:
        BundleError: the bundle is damaged.
        BackendError: no TensorRT or no GPU, one that can't do what the bundle needs, or TensorRT
            refused a graph.
        ValueError: the settings ask for what the bundle has not, the bundle changed meanwhile, or
            another process builds the same set.
    """
    folder, settings = Path(bundle), settings or BuildSettings()
    manifest, stamp = read_stamped(folder)
    target = check_target(manifest)
    extents = derive_extents(manifest, settings)
    tensorrt = open_tensorrt(builder)
    check_dtype(target)
    check_versions(target, tensorrt.builder, tensorrt.version)
    command = format_command(bundle, settings, tensorrt.builder)
    if not command.isprintable():  # or the finished engines' record would be refused
        raise ValueError(f"{command!a:.300} can't be recorded: leave out its control characters")
    gpu = find_gpu(tensorrt, settings)
    check_precisions(manifest, target, gpu, set(extents))
    name = name_set(gpu.sm, tensorrt.builder, tensorrt.version, target.dtype)
    timings = TimingCache(folder, settings, tensorrt, gpu)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(0, len(extents), 0.0, f"comparing hashes, {done >> 20} of {total >> 20} MiB")

    check_hashes(folder, manifest, tell)  # or engines would vouch for damaged weights
    made = _Record()
    with staged_set(folder, name) as staged:
        parts = staged / PARTS_FOLDER
        steps = make_steps(folder, manifest, extents, settings, parts)
        for index, step in enumerate(steps):
            start = time.perf_counter()
            reset_peak()
            profiles = shape_profiles(step.inputs, extents[step.chain])
            request = make_request(step, profiles, settings, tensorrt, gpu, timings.content)

            def report(share: float, text: str, index: int = index, name: str = step.name) -> None:
                if progress is not None:
                    progress(index, len(steps), share, f"{name}: {text}")

            built = tensorrt.build(request, report)
            timings.keep(built.timing_cache)
            made.engines.append((step.chain, _write(staged, step, profiles, built)))
            made.warnings[step.name] = built.warnings
            del built  # the plan is as large as the engine
            made.seconds[step.name] = time.perf_counter() - start
            made.peak_bytes[step.name] = read_peak_bytes()
        shutil.rmtree(parts, ignore_errors=True)
        engine_set = _describe(manifest, tensorrt, gpu, settings, command, made.engines)
        text = to_json(engine_set)
        parse_engine_set(text)  # what the runtime would refuse must not be written
        write_text(staged / ENGINE_SET_NAME, text)
        stamp.check()
    return Build(
        folder / ENGINES_FOLDER / name, engine_set, made.seconds, made.peak_bytes, made.warnings
    )


def find_gpu(tensorrt: TensorRt, settings: BuildSettings) -> Gpu:
    """What is built for: the GPU of this machine, or the one that was asked for.

    Raises:
        BackendError: there is none here, or tensorrt_rtx builds for none like it.
        ValueError: one was asked for of tensorrt, which has no choice.
    """
    if settings.compute_capability is not None:
        tensorrt.check_capability(settings.compute_capability)
        return Gpu("", settings.compute_capability)
    from ...runtime.backends.trt.cuda_driver import CudaDriver

    try:
        gpu = CudaDriver().gpu
    except BackendError as error:
        if tensorrt.builder == "tensorrt":
            raise
        raise BackendError(
            f"{error}; tensorrt_rtx also builds without one: say what for, as in "
            "--compute-capability 8.6"
        ) from error
    if tensorrt.builder == "tensorrt_rtx":
        tensorrt.check_capability(gpu.sm)
    return gpu


def reset_peak() -> None:
    """Count the most memory of this process from here on; where it can't be, from its start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def make_request(
    step: Step,
    profiles: tuple[Profile, ...],
    settings: BuildSettings,
    tensorrt: TensorRt,
    gpu: Gpu,
    timing_cache: bytes | None,
) -> EngineRequest:
    """One step as TensorRT is asked for it."""
    megabytes = settings.workspace_mib
    return EngineRequest(
        graph=step.graph,
        dtypes={spec.name: spec.dtype for spec in (*step.inputs, *step.outputs)},
        profiles=profiles,
        compute_capability=gpu.sm if tensorrt.builder == "tensorrt_rtx" else None,
        workspace_bytes=None if megabytes is None else megabytes << 20,
        optimization_level=settings.optimization_level,
        weight_streaming=settings.weight_streaming,
        timing_cache=timing_cache,
        timing_cache_file=settings.timing_cache,
        accepted=settings.accept_warning,
    )


def format_command(bundle: str | Path, settings: BuildSettings, builder: Builder) -> str:
    """The command line that builds the same again."""
    chosen = [] if builder == "tensorrt" else ["--builder", builder]
    return shlex.join(["vlmedge", "build", str(bundle), *chosen, *settings.to_options()])


@dataclass(slots=True)
class _Record:
    """Of a build under way."""

    engines: list[tuple[str, EngineRecord]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _describe(
    manifest: Manifest,
    tensorrt: TensorRt,
    gpu: Gpu,
    settings: BuildSettings,
    command: str,
    engines: list[tuple[str, EngineRecord]],
) -> EngineSet:
    graphs = dict.fromkeys(graph for graph, _ in engines)
    return EngineSet(
        schema_version=SCHEMA_VERSION,
        created_by=f"vlmedge {__version__}",
        builder=tensorrt.builder,
        version=tensorrt.version,
        gpu=gpu,
        dtype=check_target(manifest).dtype,
        command=command,
        settings=settings.to_record(),
        graph_sha256={name: manifest.files[manifest.graphs[name].file].sha256 for name in graphs},
        chains={
            name: tuple(engine for graph, engine in engines if graph == name) for name in graphs
        },
        weights_sha256=record_weights(manifest),
    )


def _write(
    folder: Path, step: Step, profiles: tuple[Profile, ...], built: BuiltEngine
) -> EngineRecord:
    file = f"{step.name}.engine"
    written = write_engine(folder / file, built.plan)
    return EngineRecord(
        step.name, file, written.bytes, written.sha256, step.inputs, step.outputs, profiles
    )
