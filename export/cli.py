"""`vlmedge export`: the command line of the exporter."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.console import make_progress, print_table
from ..runtime.manifest import Manifest
from .exporter import export_checkpoint
from .options import DEFAULT_BLOCK_SIZE, ExportOptions
from .weights import WeightFormat

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
        int, typer.Option(help="Weights that share a scale in int8 and int4: 16, 32, 64, 128, 256.")
    ] = DEFAULT_BLOCK_SIZE,
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
    start = time.perf_counter()
    with make_progress(of_bytes=True) as bar:
        task = bar.add_task("reading", total=None)

        def advance(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        manifest = export_checkpoint(checkpoint, bundle, options, advance)
    result = summarize(manifest, bundle, time.perf_counter() - start)
    if selfcheck:
        from .selfcheck import check_bundle

        result["selfcheck"] = [dataclasses.asdict(check) for check in check_bundle(bundle)]
    if json_output:
        print(json.dumps(result, indent=1))
    else:
        print_result(manifest, result)


def summarize(manifest: Manifest, bundle: Path, seconds: float) -> dict[str, object]:
    """The result as JSON has it."""
    return {
        "bundle": str(bundle),
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "seconds": round(seconds, 2),
        "files": {name: record.bytes for name, record in manifest.files.items()},
    }


def print_result(manifest: Manifest, result: dict[str, object]) -> None:
    """The result as a person reads it."""
    print(result)
