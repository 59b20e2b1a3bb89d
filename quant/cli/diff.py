"""`vlmedge diff`: the command line of the walk through two models, layer by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime.cli.commands import Threads
from ...runtime.terminal.console import (
    make_progress,
    print_json,
    print_line,
    print_notice,
    print_table,
)
from ...runtime.terminal.interruption import NOTHING_WRITTEN, interruptible
from ...runtime.terminal.tables import Column
from ...runtime.terminal.wrong_option import wrong_options_exit_with_2
from ..data.spec import check_data_spec
from .exit_code import FAILED, errors_exit_with_2
from .options import MediaRoot, tell_data

if TYPE_CHECKING:
    from ..compare.findings import LayerFinding

DEFAULT_EXAMPLES = 4
FLOAT = "float32"
FLOAT_TOLERANCE, QUANTIZED_TOLERANCE = 1e-3, 0.1  # relative L2 error


def diff(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="The reference: a bundle, or a checkpoint for transformers (extra: verify).",
            show_default=False,
        ),
    ],
    bundle: Annotated[
        Path, typer.Argument(metavar="B", help="The bundle to look into.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="What both are given: a folder of pictures, DATA.jsonl, LAYOUT:PATH.",
            show_default=False,
        ),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0.0,
            help="Largest relative L2 error of a layer's output.",
            show_default=f"{FLOAT_TOLERANCE:g}, or {QUANTIZED_TOLERANCE:g} if B is quantized",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the growth of the error into this HTML file.",
            show_default="none",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Use at most N examples.")
    ] = DEFAULT_EXAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing them.")] = 0,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out and count examples whose picture is broken."),
    ] = False,
    media_root: MediaRoot = None,
    threads: Threads = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite --plot even if it is not vlmedge's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Walk the same inputs through two models; name the first layer that departs.

    Each linear layer has two errors. Its own: given the reference's input, it
    answers for itself alone. And the grown one: with the errors of all layers
    before it. The first layer whose grown error is beyond the tolerance is named,
    and so are layers whose own error their precision does not explain.
    Values are in dB of SQNR: 20 dB is 10 % of error, 40 dB 1 %.

    Exit codes: 0 no layer departs, 1 one does, 2 could not run.
    """
    with wrong_options_exit_with_2():
        check_data_spec(data, media_root)
        if plot and plot.suffix != ".html":
            raise ValueError(f"--plot is {plot}, needed the name of an .html file")
    with errors_exit_with_2("diff"):
        from ...runtime.bundle.manifest_file import read_manifest
        from ..compare.diff import compare_layers, find_departure, trace_reference
        from ..compare.layer_rows import RowShelf
        from ..compare.layer_walk import LayeredBundle
        from ..compare.reference import is_bundle, open_checkpoint
        from ..compare.settings import compare_settings, read_bundle_settings
        from ..compare.shelf import ArrayShelf
        from ..data.open_data import open_data
        from ..files.own_output import check_output
        from ..files.verified import verify_bundle
        from ..gate.unusual import find_unusual

        if plot:
            check_output(plot, "page", force=force, apart_from=(reference, bundle))
        examples = open_data(data, limit=limit, skip_bad=skip_bad, seed=seed, media_root=media_root)
        tell_data(examples, "vlmedge diff: ")
        told = "no plot was written" if plot else NOTHING_WRITTEN
        with (
            interruptible(lambda: told),
            make_progress(of_bytes=False) as bar,
            ArrayShelf() as arrays,
        ):
            task = bar.add_task("starting", total=None)

            def tell(step: str) -> None:
                bar.update(task, description=step)

            def count(done: int, total: int, step: str) -> None:
                bar.update(task, completed=done, total=total, description=step)

            sides = [bundle, Path(reference)] if is_bundle(reference) else [bundle]
            verified = [verify_bundle(side, read_manifest(side), count) for side in sides]
            ours = LayeredBundle(bundle, threads)
            settings = read_bundle_settings(bundle, ours.manifest)
            if is_bundle(reference):
                theirs = LayeredBundle(reference, threads)
                needed = read_bundle_settings(Path(reference), theirs.manifest)
            else:
                theirs = open_checkpoint(reference, bundle, threads)
                needed = theirs.settings
            differing = [one for one in compare_settings(settings, needed) if not one.is_equal]
            try:
                traced = trace_reference(ours, theirs, examples.examples, RowShelf(arrays), tell)
            finally:
                theirs.close()
            findings = compare_layers(ours, traced, tell)
            for each in verified:
                each.check_unchanged()
        if tolerance is None:
            is_float = {finding.precision for finding in findings} == {FLOAT}
            tolerance = FLOAT_TOLERANCE if is_float else QUANTIZED_TOLERANCE
        first = find_departure(findings, tolerance)
        refused = None
        if plot:
            try:  # minutes have passed
                check_output(plot, "page", force=force, apart_from=(reference, bundle))
            except ValueError as error:
                refused = error  # told last: what was found is printed all the same
            else:
                write_plot(plot, findings, first, f"{ours.name} against {theirs.name}")
        if as_json:
            content = {
                "reference": theirs.name,
                "bundle": ours.name,
                "tolerance": tolerance,
                "first": dataclasses.asdict(first) if first else None,
                "unusual": [finding.layer for finding in find_unusual(findings)],
                "settings": [dataclasses.asdict(setting) for setting in differing],
                "layers": [dataclasses.asdict(finding) for finding in findings],
            }
            print_json(content)
        else:
            print_diff(findings, first, tolerance, f"{ours.name} against {theirs.name}")
        if differing and not as_json:
            named = [f"{one.name} ({one.reference} against {one.got})" for one in differing]
            print_notice(f"vlmedge diff: settings differ, which no layer shows: {', '.join(named)}")
        if refused:
            raise refused
    if first:
        raise typer.Exit(FAILED)


def print_diff(
    findings: Sequence[LayerFinding], first: LayerFinding | None, tolerance: float, title: str
) -> None:
    """A table of every layer in its worst picture size, unusual layers, the verdict in a line."""
    from ..gate.unusual import describe_layer, find_unusual

    rows = []
    for layer in dict.fromkeys(finding.layer for finding in findings):
        mine = [finding for finding in findings if finding.layer == layer]
        own = min(mine, key=lambda finding: finding.own_sqnr_db)
        grown = min(mine, key=lambda finding: finding.sqnr_db)
        mark = "departs" if grown is first else ""
        rows.append(
            (
                layer,
                own.precision,
                f"{own.own_sqnr_db:.1f}",
                f"{grown.sqnr_db:.1f}",
                f"{to_relative(grown.sqnr_db):.2g}",
                grown.bucket,
                mark,
            )
        )
    columns = (
        "layer",
        "precision",
        ">own dB",
        ">grown dB",
        ">rel L2",
        "worst at",
        Column("", is_verdict=True),
    )
    print_table(title, columns, rows)
    for finding in find_unusual(findings):
        print_line(f"unusual for its precision: {describe_layer(finding)}")
    if first is None:
        print_line(f"no layer departs by more than {tolerance:g}")
        return
    print_line(
        f"first to depart by more than {tolerance:g}: {first.layer} ({first.precision}), relative "
        f"error {to_relative(first.sqnr_db):.2g} at {first.bucket}, its own "
        f"{to_relative(first.own_sqnr_db):.2g}"
    )


def to_relative(sqnr_db: float) -> float:
    """Decibels -> relative L2 error."""
    return math.pow(10, -sqnr_db / 20)


def write_plot(
    path: Path, findings: Sequence[LayerFinding], first: LayerFinding | None, title: str
) -> None:
    """Own and grown error from the first layer to the last, as a page of its own.

    Raises:
        OSError: the file can't be written.
    """
    from ..report.folder import write_texts
    from ..report.layers import layer_sections
    from ..report.page import Headline, render_page

    verdict = f"First to depart: {first.layer}" if first else "No layer departs"
    word = "DEPARTS" if first else "SAME"
    headline = Headline("fail" if first else "pass", word, verdict, ())
    page = render_page(f"Layers of {title}", headline, layer_sections(findings))
    write_texts(path.absolute().parent, {path.name: page})
