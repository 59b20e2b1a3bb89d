"""`vlmedge export`: the command line of the exporter."""

from __future__ import annotations

import dataclasses
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.console import format_bytes, make_progress, print_json, print_table
from ..runtime.manifest import Manifest
from .exporter import export_checkpoint
from .options import DEFAULT_BLOCK_SIZES, ExportOptions
from .weights import WeightFormat

if TYPE_CHECKING:
    from .selfcheck import GraphCheck

_FORMATS = "fp32, fp16 (half the disk, not the memory), int8 or int4 (both: weights only)"


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="Directory of a Hugging Face checkpoint, or a hub id.")
    ],
    bundle: Annotated[Path, typer.Argument(help="Directory to write; an old bundle is replaced.")],
    weights: Annotated[
        WeightFormat, typer.Option(help=f"Format of the decoder's matrices: {_FORMATS}.")
    ] = "fp32",
    vision_weights: Annotated[
        WeightFormat | None,
        typer.Option(help="Format of the ViT's matrices; default: as the decoder, int8 for int4."),
    ] = None,
    lm_head_weights: Annotated[
        WeightFormat | None,
        typer.Option(help="Format of the last matrix; default: as the decoder, int8 for int4."),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            help="Weights that share a scale in int8 and int4: 16, 32, 64, 128, 256.",
            show_default=", ".join(f"{name} {size}" for name, size in DEFAULT_BLOCK_SIZES.items()),
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare with transformers afterwards (extra: verify)."),
    ] = False,
    selfcheck: Annotated[
        bool,
        typer.Option("--selfcheck", help="Check and run every graph afterwards (extra: cpu)."),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Turn a Qwen2-VL checkpoint into a bundle that a device can run."""
    options = ExportOptions(weights, vision_weights, lm_head_weights, block_size)
    # Before the long work: their extras may not be installed.
    comparison = import_module(".verify", __package__) if verify else None
    checker = import_module(".selfcheck", __package__) if selfcheck else None
    start = time.perf_counter()
    with make_progress(of_bytes=True) as bar:
        task = bar.add_task("reading", total=None)

        def advance(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        manifest = export_checkpoint(checkpoint, bundle, options, advance)
    seconds = time.perf_counter() - start
    checks: list[GraphCheck] = checker.check_bundle(bundle) if checker else []
    report = comparison.verify_bundle(checkpoint, bundle) if comparison else None
    if json_output:
        result = {
            "bundle": str(bundle),
            "seconds": round(seconds, 2),
            "weights": _formats(options),
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
    formats = ", ".join(f"{part} {format}" for part, format in _formats(options).items())
    print(f"{bundle}: {format_bytes(total)} in {seconds:.1f} s; {formats}")
    print_table("", ("file", ">bytes"), rows)
    if checks:
        print_table(
            "selfcheck passed",
            ("graph", ">nodes", ">largest output"),
            [(check.name, check.num_nodes, f"{check.largest_output:.3g}") for check in checks],
        )


def _formats(options: ExportOptions) -> dict[str, str]:
    return {
        "vision": options.vision.format,
        "decoder": options.decoder.format,
        "lm_head": options.lm_head.format,
    }
