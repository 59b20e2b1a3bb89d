"""`vlmedge sensitivity`: the command line of the per-layer measurement."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.console import make_progress, print_json, print_notice
from ..runtime.interruption import interruptible
from .kept_work import describe_stages

UNFINISHED = ".unfinished"  # in --out


def sensitivity(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="A float bundle.", show_default=False),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="Formats to measure: accurate, cpu, orin, smallest, thor, or a TOML file.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Pictures and prompts, with answers if there are: a folder of pictures, "
            "DATA.jsonl, or a benchmark as LAYOUT:PATH.",
            show_default=False,
        ),
    ],
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Really run the model for every layer; takes long."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Write sensitivity.json and sensitivity.html here; an interrupted run goes on.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take so many examples.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which ones, with --limit.")] = 0,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out and count examples whose picture is broken."),
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Measure what quantizing each layer does to the model.

    Of every layer that the recipe quantizes: the damage it does alone, and that
    of everything but it, at the image embeddings and at the logits along the
    known answers, by picture size; the most harmful first.

    Without --exact it is estimated: each block is run alone, its layers are told
    apart by their own errors.
    """
    from .data import open_data
    from .recipe import open_recipe
    from .report import write_texts
    from .sensitivity import measure_sensitivity
    from .sensitivity_report import format_json, print_sensitivity, render_sensitivity, to_json

    chosen = open_recipe(recipe)
    examples = open_data(data, limit=limit, seed=seed, skip_bad=skip_bad)
    for example, reason in examples.skipped.items():
        print_notice(f"vlmedge sensitivity: skipped {example}: {reason}")
    with (
        interruptible(lambda: _describe_kept(out)),
        _work_folder(out) as work,
        make_progress(of_bytes=False) as bar,
    ):
        step = bar.add_task("reading", total=None)
        result = measure_sensitivity(
            bundle,
            chosen,
            examples,
            mode="exact" if exact else "fast",
            work=work,
            num_threads=threads or 0,
            progress=lambda done, total, name: bar.update(
                step, completed=done, total=total, description=name
            ),
        )
    if out is not None:
        texts = {
            "sensitivity.json": format_json(result),
            "sensitivity.html": render_sensitivity(result),
        }
        write_texts(out, texts)
    if as_json:
        print_json(to_json(result))
    else:
        print_sensitivity(result)


def _describe_kept(out: Path | None) -> str:
    if out is None:
        return "nothing is kept; with --out FOLDER an interrupted run goes on"
    return describe_stages([out / UNFINISHED])


@contextmanager
def _work_folder(out: Path | None) -> Iterator[Path]:
    """Where finished stages are: in --out they outlive an interruption."""
    if out is not None:
        work = out / UNFINISHED
        work.mkdir(parents=True, exist_ok=True)
        yield work
        shutil.rmtree(work)  # with what interrupted runs of other recipes have left
        return
    with tempfile.TemporaryDirectory(prefix="vlmedge-sensitivity-") as folder:
        yield Path(folder)
