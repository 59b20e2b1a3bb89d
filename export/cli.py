"""`vlmedge export`: the command line of the exporter."""

from __future__ import annotations

import dataclasses
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..quant.files.bundle_target import check_target, describe_loss
from ..quant.rounding.weight_only import BLOCK_SIZES
from ..runtime.terminal.completion import complete_words
from ..runtime.terminal.console import (
    format_bytes,
    make_progress,
    print_json,
    print_line,
    print_notice,
    print_table,
)
from ..runtime.terminal.interruption import interruptible
from ..runtime.terminal.wrong_option import check_word, wrong_options_exit_with_2
from .graphs.weight_format import DEFAULT_BLOCK_SIZES, WeightFormat
from .lowering.options import DEFAULT_CONTEXT, DtypeOption, LoweringOptions
from .lowering.targets import TARGETS, Device, check_device

if TYPE_CHECKING:
    from ..runtime.bundle.manifest import Manifest
    from .graphs.options import ExportOptions
    from .verify.selfcheck import GraphCheck

_SIZES = ", ".join(map(str, BLOCK_SIZES))
_FORMATS = "fp32, fp16 (half the disk, not the memory), int8 or int4 (both: weights only)"


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder of a Hugging Face checkpoint or LoRA adapter, or a hub id; with --target "
            "also a bundle.",
            show_default=False,
        ),
    ],
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="Folder to write; an old bundle is replaced.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        WeightFormat, typer.Option(help=f"Format of the decoder's matrices: {_FORMATS}.")
    ] = "fp32",
    vision_weights: Annotated[
        WeightFormat | None,
        typer.Option(
            help="Format of the ViT's matrices.", show_default="the decoder's, int8 for int4"
        ),
    ] = None,
    lm_head_weights: Annotated[
        WeightFormat | None,
        typer.Option(
            help="Format of the last matrix.", show_default="the decoder's, int8 for int4"
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            help=f"Weights that share a scale in int8 and int4: {_SIZES}.",
            show_default=", ".join(f"{name} {size}" for name, size in DEFAULT_BLOCK_SIZES.items()),
        ),
    ] = None,
    requantize: Annotated[
        bool,
        typer.Option(
            "--requantize",
            help="Take layers that the checkpoint has packed (AWQ, GPTQ, ...) as the floats they "
            "mean, and round them by --weights.",
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Write graphs for this TensorRT, of which vlmedge build makes engines: "
            f"{', '.join(TARGETS)}.",
            show_default="none, graphs for ONNX Runtime",
            autocompletion=complete_words(lambda: TARGETS),
            rich_help_panel="TensorRT",
        ),
    ] = None,
    dtype: Annotated[
        DtypeOption | None,
        typer.Option(
            help="With --target: the type that is computed in; fp32 and fp16 also run in ONNX "
            "Runtime.",
            show_default="bf16",
            rich_help_panel="TensorRT",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --target: tokens of the cache, where the graph fixes them.",
            show_default=f"{DEFAULT_CONTEXT}, or the model's if that is less",
            rich_help_panel="TensorRT",
        ),
    ] = None,
    device: Annotated[
        Device | None,
        typer.Option(
            help="With --target: refuse what this board can't compute.",
            show_default="the target's, where it has one",
            rich_help_panel="TensorRT",
        ),
    ] = None,
    link_weights: Annotated[
        bool,
        typer.Option(
            "--link-weights",
            help="With --target: hard-link the checkpoint's own files beside the graphs instead of "
            "writing weights; needs the same file system, and a checkpoint in the type of --dtype.",
            rich_help_panel="TensorRT",
        ),
    ] = False,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Merge this LoRA adapter of peft into the weights; repeat it for several, merged "
            "in this order.",
            show_default="none",
        ),
    ] = None,
    no_adapter: Annotated[
        bool,
        typer.Option("--no-adapter", help="Ignore an adapter that lies beside the checkpoint."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare with transformers afterwards (extra: verify)."),
    ] = False,
    selfcheck: Annotated[
        bool,
        typer.Option("--selfcheck", help="Check and run every graph afterwards (extra: cpu)."),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead.")
    ] = False,
) -> None:
    """Turn a Qwen2-VL checkpoint into a bundle that a device can run.

    With --target, a checkpoint or a bundle (as exported, or quantized by any
    recipe) becomes a bundle of graphs for that TensorRT.
    """
    formats = (weights, vision_weights, lm_head_weights, block_size)
    with wrong_options_exit_with_2():
        if block_size is not None and block_size not in BLOCK_SIZES:
            raise ValueError(f"--block-size is {block_size}, needed one of {_SIZES}")
        if adapter and no_adapter:
            raise ValueError("--adapter and --no-adapter exclude each other")
        for folder in adapter or ():
            if not (folder / "adapter_config.json").is_file():
                raise ValueError(f"--adapter {folder} is no adapter: no adapter_config.json in it")
        lowering = _read_lowering(target, dtype, context, device, link_weights)
        if lowering is not None and formats != ("fp32", None, None, None):
            raise ValueError(
                "--weights and its kin are of the onnxruntime flavor: quantize first (vlmedge "
                "quantize), then give the quantized bundle to export --target"
            )
        if lowering is not None and requantize:
            raise ValueError(
                "--requantize is of the onnxruntime flavor: export a bundle with it, then give the "
                "bundle to export --target"
            )
        if lowering is not None and verify:
            raise ValueError("--verify compares graphs for ONNX Runtime: leave out --target")
    from .exporter import export_checkpoint
    from .graphs.options import ExportOptions

    options = ExportOptions(*formats, requantize=requantize)
    adapters = tuple(adapter) if adapter else () if no_adapter else None
    remarks: list[str] = []
    if verify:
        import_module(".verify.adapted_model", __package__).check_peft(checkpoint, adapters)
    # Before the long work: their extras may not be installed.
    comparison = import_module(".verify.verify", __package__) if verify else None
    checker = import_module(".verify.selfcheck", __package__) if selfcheck else None
    old = check_target(bundle, checkpoint)
    start = time.perf_counter()
    told = "no bundle was written"
    with interruptible(lambda: told), make_progress(of_bytes=True) as bar:
        task = bar.add_task("reading", total=None)

        def advance(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        if lowering is None:
            manifest = export_checkpoint(
                checkpoint, bundle, options, advance, adapters=adapters, tell=remarks.append
            )
        else:
            from .lowering.exporter import export_for_target

            manifest = export_for_target(
                checkpoint, bundle, lowering, advance, adapters=adapters, tell=remarks.append
            )
    seconds = time.perf_counter() - start
    if lost := describe_loss(bundle, old):
        print_notice(lost)
    if lowering is not None and lowering.dtype == "fp16" and not selfcheck:
        print_notice(
            "float16: whether every value fits its range was not tried; --selfcheck does with "
            "drawn pictures, vlmedge check with yours"
        )
    for remark in remarks:
        print_notice(remark)
    told = f"{bundle} is written, its checks are not done"
    with interruptible(lambda: told), make_progress(of_bytes=False) as bar:
        bar.add_task("checking the graphs", total=None, visible=checker is not None)
        checks: list[GraphCheck] = checker.check_bundle(bundle) if checker else []
        bar.add_task("comparing with transformers", total=None, visible=comparison is not None)
        report = (
            comparison.verify_bundle(checkpoint, bundle, adapters=adapters) if comparison else None
        )
    if json_output:
        result = {
            "bundle": str(bundle),
            "seconds": round(seconds, 2),
            "weights": _formats(options, manifest),
            "target": dataclasses.asdict(manifest.target) if manifest.target else None,
            "bytes": {name: record.bytes for name, record in manifest.files.items()},
            "selfcheck": [dataclasses.asdict(check) for check in checks],
            "verify": comparison.report_to_dict(report) if comparison else None,
        }
        print_json(result)
    else:
        print_result(manifest, bundle, seconds, options, checks)
    if comparison and report:
        if not json_output:
            comparison.print_report(report)
        if not report.passed:
            raise typer.Exit(1)


def print_result(
    manifest: Manifest,
    bundle: Path,
    seconds: float,
    options: ExportOptions,
    checks: list[GraphCheck],
) -> None:
    """The result as a person reads it."""
    rows = [(name, f"{record.bytes:,}") for name, record in manifest.files.items()]
    total = sum(record.bytes for record in manifest.files.values())
    formats = ", ".join(f"{part} {format}" for part, format in _formats(options, manifest).items())
    print_line(f"{bundle}: {format_bytes(total)} in {seconds:.1f} s; {formats}")
    print_table("", ("file", ">bytes"), rows)
    if checks:
        print_table(
            "selfcheck passed",
            ("graph", ">nodes", ">largest output"),
            [(check.name, check.num_nodes, _describe_output(check)) for check in checks],
        )


def _describe_output(check: GraphCheck) -> str:
    is_run = check.largest_output is not None
    return f"{check.largest_output:.3g}" if is_run else "not run: bfloat16"


def _read_lowering(
    target: str | None,
    dtype: DtypeOption | None,
    context: int | None,
    device: Device | None,
    link_weights: bool,
) -> LoweringOptions | None:
    """The TensorRT options as one object; None without a target."""
    if target is not None:
        check_word("--target", target, list(TARGETS))
        options = LoweringOptions(target, dtype or "bf16", context, device, link_weights)
        check_device([], options.row, device)
        return options
    given = {"--dtype": dtype, "--context": context, "--device": device}
    given |= {"--link-weights": link_weights or None}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} goes with --target")
    return None


def _formats(options: ExportOptions, manifest: Manifest) -> dict[str, str]:
    if manifest.target is not None:
        return {"target": manifest.target.name, "dtype": manifest.target.dtype}
    return {
        "vision": options.vision.format,
        "decoder": options.decoder.format,
        "lm_head": options.lm_head.format,
    }
