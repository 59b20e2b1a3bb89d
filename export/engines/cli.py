"""`vlmedge build`: the command line of the engine builder."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...runtime.terminal import status_line
from ...runtime.terminal.console import (
    format_bytes,
    make_progress,
    print_json,
    print_line,
    print_notice,
    print_table,
)
from ...runtime.terminal.interruption import interruptible
from .settings import DEFAULT_MAX_PIXELS, MAX_OPTIMIZATION_LEVEL, BuildSettings

if TYPE_CHECKING:
    from .build import Build

_SIZES, _BUILDING, _MEMORY = "Sizes of requests", "Building", "Little memory"


def build(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="Folder made by vlmedge export --target.",
            show_default=False,
        ),
    ],
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest picture, in pixels; larger ones are shrunk. Smaller takes less memory.",
            show_default=f"the bundle's budget, at most {DEFAULT_MAX_PIXELS}",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    max_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="Pictures of equal size, or frame pairs of a clip, encoded at once.",
            rich_help_panel=_SIZES,
        ),
    ] = 1,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Answers generated at once.", rich_help_panel=_SIZES)
    ] = 1,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of prompt and answer together, where the graph leaves them open.",
            show_default="4096",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    prefill_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Tokens of a prompt that are read at once; longer ones go in pieces.",
            rich_help_panel=_SIZES,
        ),
    ] = 512,
    video: Annotated[
        bool, typer.Option("--video", help="Build the graph of clips, too.", rich_help_panel=_SIZES)
    ] = False,
    split: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of engines that the decoder is built as, one after another (needs onnx).",
            rich_help_panel=_MEMORY,
        ),
    ] = 1,
    separate_lm_head: Annotated[
        bool,
        typer.Option(
            "--separate-lm-head",
            help="Build the last matrix as an engine of its own (needs onnx).",
            rich_help_panel=_MEMORY,
        ),
    ] = False,
    workspace_mib: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Scratch memory that a kernel may use, in MiB.",
            show_default="all there is",
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming",
            help="Engines may leave weights in the host's memory; of no use where GPU and host "
            "share one, as on a Jetson.",
            rich_help_panel=_MEMORY,
        ),
    ] = False,
    builder: Annotated[
        Literal["tensorrt", "tensorrt_rtx"] | None,
        typer.Option(
            help="TensorRT that builds.",
            show_default="tensorrt, or tensorrt_rtx where that is missing",
            rich_help_panel=_BUILDING,
        ),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            metavar="8.6",
            help="Compute capability to build for, with which no GPU is needed; tensorrt_rtx only.",
            show_default="this machine's GPU",
            rich_help_panel=_BUILDING,
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_OPTIMIZATION_LEVEL,
            help="How long to look for fast kernels: 0 builds fastest, 5 looks longest.",
            show_default="TensorRT's",
            rich_help_panel=_BUILDING,
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of kernels that earlier builds measured; tensorrt only.",
            show_default="beside the engines",
            rich_help_panel=_BUILDING,
        ),
    ] = None,
    accept_warning: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Go on at a warning that holds this text and would end the build, once you know "
            "that it does no harm; repeatable.",
            show_default="none",
            rich_help_panel=_BUILDING,
        ),
    ] = None,
    emit_script: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.sh",
            help="Build nothing: write a shell script that does it on the device, and a tar of "
            "what it needs there.",
            show_default="none",
            rich_help_panel=_BUILDING,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Overwrite --emit-script's script and tar even if they are not as vlmedge wrote "
            "them.",
            rich_help_panel=_BUILDING,
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Build TensorRT engines of a bundle, for the GPU of this machine.

    Engines run on the kind of GPU and with the version of TensorRT they are built
    with: build on the device. They go to BUNDLE/engines, a set for each GPU,
    TensorRT and type, beside the record of how to build it again; vlmedge run
    takes the set that fits. Pictures are prepared for in several ranges of sizes
    up to --max-pixels, the decoder for prompts and for single tokens.

    On a board of 8 GB begin with --split 4 --separate-lm-head and a smaller
    --max-pixels. Where there is no TensorRT, --emit-script writes what to copy to
    the device and run there.
    """
    try:
        settings = BuildSettings(
            max_batch=max_batch,
            max_images=max_images,
            max_pixels=max_pixels,
            context=context,
            prefill_tokens=prefill_tokens,
            split=split,
            separate_lm_head=separate_lm_head,
            video=video,
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            weight_streaming=weight_streaming,
            compute_capability=compute_capability,
            timing_cache=timing_cache,
            accept_warning=tuple(accept_warning or ()),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if emit_script is not None:
        if builder is not None:
            raise typer.BadParameter(
                "a script builds with the TensorRT of the device: leave out --builder"
            )
        if accept_warning:
            raise typer.BadParameter("a script ends at warnings by its own list: edit it there")
        _emit(bundle, settings, emit_script, force=force, as_json=as_json)
        return
    from .build import build_engines

    start = time.perf_counter()
    with interruptible(lambda: "no engines were written"), make_progress(of_bytes=False) as bar:
        task = bar.add_task("reading", total=None)

        def advance(done: int, total: int, share: float, text: str) -> None:
            bar.update(task, completed=done + share, total=total, description=text)

        made = build_engines(bundle, settings, builder, advance)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(_make_json(made, seconds))
    else:
        _print_result(made, seconds)
    for name, warnings in made.warnings.items():
        for warning in warnings:
            print_notice(f"vlmedge build: {name}: {warning}")


def _emit(
    bundle: Path, settings: BuildSettings, script: Path, *, force: bool, as_json: bool
) -> None:
    from ...runtime.bundle.manifest_file import read_manifest
    from .script.write import write_script

    manifest = read_manifest(bundle)
    status_line.show("vlmedge build: packing what the device needs")
    with interruptible(lambda: f"{script} is not complete: the same command writes it anew"):
        written = write_script(bundle, manifest, settings, script, force=force)
    if as_json:
        print_json({"script": str(written.script), "archive": str(written.archive)})
        return
    size = format_bytes(written.archive.stat().st_size)
    print_line(f"{written.archive}: {size}, with {written.script.name} in it; on the device:")
    print_line(f"  tar -xf {written.archive.name} && bash {written.script.name}")


def _print_result(made: Build, seconds: float) -> None:
    record = made.engine_set
    engines = [engine for chain in record.chains.values() for engine in chain]
    total = format_bytes(sum(engine.bytes for engine in engines))
    gpu = record.gpu.name or f"compute capability {record.gpu.sm}"
    peak = format_bytes(max(made.peak_bytes.values()))
    print_line(f"{made.folder}: {total} in {seconds:.1f} s, peak memory {peak}")
    print_table(
        f"{record.builder} {record.version}, {record.dtype}, for {gpu}",
        ("engine", ">bytes", ">profiles", ">seconds", ">peak memory"),
        [
            (
                engine.file,
                f"{engine.bytes:,}",
                len(engine.profiles),
                f"{made.seconds[engine.name]:.1f}",
                format_bytes(made.peak_bytes[engine.name]),
            )
            for engine in engines
        ],
    )


def _make_json(made: Build, seconds: float) -> dict[str, Any]:
    return {
        "folder": str(made.folder),
        "seconds": round(seconds, 2),
        "seconds_by_engine": {name: round(value, 2) for name, value in made.seconds.items()},
        "peak_bytes": made.peak_bytes,
        "warnings": made.warnings,
        "engine_set": dataclasses.asdict(made.engine_set),
    }
