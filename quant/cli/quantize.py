"""`vlmedge quantize`: the command line of the quantizer."""

from __future__ import annotations

import dataclasses
import glob
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...runtime.cli.commands import Threads
from ...runtime.terminal.completion import complete_words
from ...runtime.terminal.console import (
    format_bytes,
    make_progress,
    print_json,
    print_line,
    print_notice,
    print_table,
)
from ...runtime.terminal.interruption import interruptible
from ...runtime.terminal.wrong_option import need_file, wrong_options_exit_with_2
from ..data.spec import check_data_spec
from ..recipe.preset_names import find_recipe, list_presets
from .kept_work import describe_stages
from .options import MediaRoot, tell_data

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import Manifest
    from ..data.examples import DataSet
    from ..gate.gate import Gate
    from ..quantize.quantize import Quantization
    from ..recipe.recipe import Recipe

NUM_WORST = 5  # layers that the result names


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A float bundle, or a checkpoint (folder or hub id; extra: export).",
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
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help=f"Recipe to quantize by: {', '.join(list_presets())}, or a TOML file.",
            show_default=False,
            autocompletion=complete_words(list_presets),
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Pictures and prompts to calibrate with: a folder of pictures, DATA.jsonl, or a "
            "benchmark as LAYOUT:PATH.",
            show_default="none",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="File of what calibration finds: written with --data, read without.",
            show_default="none",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Use at most N examples.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing them.")] = 0,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out and count examples whose picture is broken."),
    ] = False,
    media_root: MediaRoot = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Give as few layers as needed back to a higher precision, until --gate holds.",
        ),
    ] = False,
    gate: Annotated[
        Path | None,
        typer.Option(
            "--gate",
            metavar="FILE",
            help="TOML file of limits that --auto has to hold.",
            show_default="none",
        ),
    ] = None,
    cost: Annotated[
        Literal["bits", "ms"],
        typer.Option(help="What --auto keeps small: bits of weights, or time on this machine."),
    ] = "bits",
    write_recipe: Annotated[
        Path | None,
        typer.Option(
            "--write-recipe",
            metavar="FILE",
            help="Write the recipe that was used to this file.",
            show_default="none",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Overwrite --calibration and --write-recipe even if they are not vlmedge's; never "
            "a folder.",
        ),
    ] = False,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Quantize a float bundle or a checkpoint by a recipe.

    Layers are worked on one after another, so memory stays small; an interrupted
    run goes on from its finished layers when it is called again. Static formats
    (int8, fp8) and calibrated roundings need real pictures and prompts: give
    --data that looks like what the device will see.

    With --auto layers are given back to the next higher precision, the most
    harmful first, until every limit of --gate holds; the recipe that came out
    is in the bundle, and in --write-recipe.
    """
    import tomllib  # noqa: F401  Python 3.11 is said to be needed before a package is

    with wrong_options_exit_with_2():
        find_recipe(recipe)
        if auto != (gate is not None):
            raise ValueError("--auto and --gate go together")
        if auto and data is None:
            raise ValueError("--auto measures the model on --data")
        if gate is not None:
            need_file("--gate", gate)
        if data is not None:
            check_data_spec(data, media_root)
        elif media_root is not None:
            raise ValueError("--media-root says where the pictures of --data are: give it as well")
    from ..compare.checkpoints import float_bundle
    from ..data.open_data import open_data
    from ..files.atomic import write_text
    from ..files.bundle_target import check_target, describe_loss
    from ..files.own_output import check_output, sign_text
    from ..gate.gate import read_gate
    from ..graph.linears import list_carried
    from ..quantize.float16_calibration import describe_over_float16
    from ..quantize.quantize import check_data, check_pictures
    from ..recipe.toml import format_recipe, open_recipe

    chosen = open_recipe(recipe)
    # What is wrong is told before the long work
    limits = read_gate(gate) if gate else None
    check_data(chosen, has_data=data is not None or calibration is not None)
    if calibration is not None and data is None and not calibration.is_file():
        raise ValueError(f"{calibration} is no file: give --data to write one")
    _check_outputs(source, bundle, data, gate, calibration, write_recipe, force=force)
    old = check_target(bundle, source)
    examples = (
        open_data(data, limit=limit, seed=seed, skip_bad=skip_bad, media_root=media_root)
        if data
        else None
    )
    if examples is not None:
        check_pictures(chosen, examples)
    start = time.perf_counter()
    with interruptible(lambda: _describe_kept(bundle)), make_progress(of_bytes=True) as bar:
        step = bar.add_task("exporting", total=None)

        def advance(done: int, total: int, name: str) -> None:
            bar.update(step, completed=done, total=total, description=f"exporting {name}")

        with float_bundle(source, bundle, advance) as folder:
            bar.stop()
            if examples is not None:
                _tell_data(folder, examples)
            if limits and examples:
                chosen = _search(folder, chosen, examples, limits, cost, threads or 0, bundle)
            made = _quantize(folder, bundle, chosen, examples, calibration, threads or 0)
    if told := describe_over_float16(made.over_float16):
        print_notice(told)
    if write_recipe is not None:
        check_output(write_recipe, "recipe", force=force)  # hours have passed
        write_text(write_recipe, sign_text(format_recipe(chosen)))
    if lost := describe_loss(bundle, old):
        print_notice(lost)
    if carried := list_carried(made.manifest):
        print_notice(f"{len(carried)} layers keep what the checkpoint had packed")
    seconds = time.perf_counter() - start
    if as_json:
        print_json(_make_json(bundle, made, seconds))
    else:
        _print_result(bundle, made, seconds)


def _check_outputs(
    source: str,
    bundle: Path,
    data: str | None,
    gate: Path | None,
    calibration: Path | None,
    write_recipe: Path | None,
    *,
    force: bool,
) -> None:
    """Refuse what can't be written at the end; the recipe may be written over the one it was."""
    from ..files.bundle_target import check_apart
    from ..files.own_output import check_output

    written = {"recipe": write_recipe, "calibration": calibration if data else None}
    read = [Path(text) for text in (data, gate) if text and Path(text).is_file()]
    for kind, path in written.items():
        if path is not None:
            check_output(path, kind, force=force, apart_from=(source, bundle, *read))
    if calibration and write_recipe and calibration.resolve() == write_recipe.resolve():
        raise typer.BadParameter("--calibration and --write-recipe are the same file")
    for text in (data, calibration):
        if text:
            # Of a folder of pictures nothing is read that a bundle has
            check_apart(bundle, text, may_lie_in=True)


def _quantize(
    folder: Path,
    bundle: Path,
    recipe: Recipe,
    examples: DataSet | None,
    calibration: Path | None,
    num_threads: int,
) -> Quantization:
    from ..quantize.quantize import quantize_bundle

    with make_progress(of_bytes=False) as bar:
        step = bar.add_task("reading", total=None)

        def tell_kept() -> str:
            total = bar.tasks[0].total
            return _describe_kept(bundle, None if total is None else int(total))

        with interruptible(tell_kept):
            return quantize_bundle(
                folder,
                bundle,
                recipe,
                examples,
                calibration_file=calibration,
                num_threads=num_threads,
                progress=lambda done, total, name: bar.update(
                    step, completed=done, total=total, description=name
                ),
                advance=lambda _: bar.update(step, description="writing the bundle"),
            )


def _describe_kept(bundle: Path, num_stages: int | None = None) -> str:
    """What the next run finds: layers of this quantization, or those of a search."""
    path = bundle.absolute()
    folders = [*path.parent.glob(f".{glob.escape(path.name)}.quantize-*"), _name_search(bundle)]
    return describe_stages([bundle.parent / folder.name for folder in folders], num_stages)


def _name_search(bundle: Path) -> Path:
    return bundle.absolute().parent / f".{bundle.absolute().name}.auto"


def _search(
    folder: Path,
    recipe: Recipe,
    examples: DataSet,
    gate: Gate,
    cost: Literal["bits", "ms"],
    num_threads: int,
    bundle: Path,
) -> Recipe:
    """The recipe that holds the gate, and a line for each layer it gave back."""
    from ..auto.search_recipe import search_recipe

    with make_progress(of_bytes=False) as bar:
        step = bar.add_task("auto", total=None)

        def tell(line: str) -> None:
            print_notice(line)
            bar.update(step, description=line)

        found = search_recipe(
            folder,
            recipe,
            examples,
            gate,
            cost=cost,
            num_threads=num_threads,
            work=_name_search(bundle),
            progress=tell,
        )
    for layer, before, after, reason in found.returned:
        print_notice(f"{layer}: {before} -> {after} ({reason})")
    if not found.passed:
        raise ValueError(
            f"no mix of precisions was found that holds {gate.name} in {found.checks} checks: "
            "loosen the gate, or start from a recipe of higher precision"
        )
    return found.recipe


def _tell_data(folder: Path, examples: DataSet) -> None:
    """What the data covers of the bundle's picture sizes, and what it does not."""
    from ...runtime.bundle.manifest_file import read_manifest
    from ..data.buckets import coverage_of, summarize

    tell_data(examples)
    for line in summarize(coverage_of(examples.examples, read_manifest(folder))):
        print_notice(line)


def _print_result(bundle: Path, made: Quantization, seconds: float) -> None:
    from ...runtime.peak_memory import read_peak_bytes

    total = sum(record.bytes for record in made.manifest.files.values())
    resumed = f", {made.resumed} stages of an earlier run" if made.resumed else ""
    print_line(
        f"{bundle}: {format_bytes(total)} in {seconds:.1f} s, "
        f"peak memory {format_bytes(read_peak_bytes())}{resumed}"
    )
    print_table(
        f"recipe {made.plan.recipe.name}",
        ("part", "precision", ">layers"),
        [(*key, count) for key, count in count_layers(made.manifest).items()],
    )
    worst = sorted(made.errors.items(), key=lambda item: -item[1].chosen)[:NUM_WORST]
    if worst:
        print_table(
            "largest errors of single layers on the calibration data",
            ("layer", ">relative", ">rounded to nearest", ">migration"),
            [
                (
                    name,
                    f"{error.chosen:.4f}",
                    f"{error.nearest:.4f}",
                    "" if error.strength is None else f"{error.strength:g}",
                )
                for name, error in worst
            ],
        )


def count_layers(manifest: Manifest) -> dict[tuple[str, str], int]:
    """(part, precision) -> number of linear layers, tables and caches."""
    counts: dict[tuple[str, str], int] = {}
    for entry in manifest.coverage:
        if entry.kind == "attention" or entry.graph == "vision_video":
            continue
        part = entry.kind if entry.kind != "linear" else str(entry.graph)
        key = ("lm_head" if entry.name == "lm_head" else part, entry.precision)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _make_json(bundle: Path, made: Quantization, seconds: float) -> dict[str, Any]:
    from ...runtime.peak_memory import read_peak_bytes

    return {
        "bundle": str(bundle),
        "recipe": made.plan.recipe.name,
        "seconds": round(seconds, 2),
        "peak_bytes": read_peak_bytes(),
        "resumed_stages": made.resumed,
        "bytes": {name: record.bytes for name, record in made.manifest.files.items()},
        "coverage": [dataclasses.asdict(entry) for entry in made.manifest.coverage],
        "errors": {name: dataclasses.asdict(error) for name, error in made.errors.items()},
        "over_float16": made.over_float16,
    }
