"""`vlmedge sensitivity`: the command line of the per-layer measurement."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ...runtime.cli.commands import Threads
from ...runtime.terminal.completion import complete_words
from ...runtime.terminal.console import make_progress, print_json
from ...runtime.terminal.interruption import interruptible
from ...runtime.terminal.wrong_option import wrong_options_exit_with_2
from ..data.spec import check_data_spec
from ..recipe.preset_names import find_recipe, list_presets
from .kept_work import describe_stages
from .options import MediaRoot, tell_data

# What --out gets, and the kind that own_output knows each by
OUT_FILES = {"sensitivity.json": "sensitivity", "sensitivity.html": "page"}
WORK_NAME = ".unfinished"  # in --out, until all is done
WORK_PREFIXES = ("rows-", ".layers.")  # of what is in it


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
            help=f"Recipe of the formats to measure: {', '.join(list_presets())}, or a TOML file.",
            show_default=False,
            autocompletion=complete_words(list_presets),
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
        typer.Option("--exact", help="Measure every layer with the real model (slow)."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Write sensitivity.json and sensitivity.html to this folder; an interrupted run "
            "goes on in it.",
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
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files in --out that are not vlmedge's.")
    ] = False,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Measure what quantizing each layer does to the model.

    Of every layer that the recipe quantizes: the damage it does alone, and that
    of everything but it, at the image embeddings and at the logits along the
    known answers, by picture size; the most harmful first.

    Without --exact it is estimated: each block is run alone, its layers are told
    apart by their own errors.
    """
    import tomllib  # noqa: F401  Python 3.11 is said to be needed before a package is

    with wrong_options_exit_with_2():
        find_recipe(recipe)
        check_data_spec(data, media_root)
    from ..data.open_data import open_data
    from ..files.own_output import check_outputs
    from ..files.target_lock import locked_target
    from ..recipe.toml import open_recipe
    from ..report.folder import write_texts
    from ..sensitivity.measure import measure_sensitivity
    from ..sensitivity.report import format_json, print_sensitivity, render_sensitivity, to_json

    chosen = open_recipe(recipe)
    if out is not None:
        check_outputs(out, OUT_FILES, force=force, apart_from=(bundle,))
    examples = open_data(data, limit=limit, seed=seed, skip_bad=skip_bad, media_root=media_root)
    tell_data(examples, "vlmedge sensitivity: ")
    with (
        interruptible(lambda: _describe_kept(out)),
        locked_target(out) if out is not None else nullcontext(),
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
    refused = None
    if out is not None:
        try:  # hours have passed
            check_outputs(out, OUT_FILES, force=force, apart_from=(bundle,))
        except ValueError as error:
            refused = error  # told last: what was measured is printed all the same
        else:
            texts = {
                "sensitivity.json": format_json(result),
                "sensitivity.html": render_sensitivity(result),
            }
            write_texts(out, texts)
    if as_json:
        print_json(to_json(result))
    else:
        print_sensitivity(result)
    if refused:
        raise refused


def _describe_kept(out: Path | None) -> str:
    if out is None:
        return "nothing is kept; with --out FOLDER an interrupted run goes on"
    return describe_stages([out / WORK_NAME])


@contextmanager
def _work_folder(out: Path | None) -> Iterator[Path]:
    """Where finished stages are: in --out they outlive an interruption."""
    if out is not None:
        work = out / WORK_NAME
        work.mkdir(parents=True, exist_ok=True)
        if foreign := [p.name for p in work.iterdir() if not p.name.startswith(WORK_PREFIXES)]:
            raise ValueError(
                f"{work} holds what is not vlmedge's ({foreign[0]}): it is left alone, name "
                "another folder"
            )
        yield work
        shutil.rmtree(work)  # with what interrupted runs of other recipes have left
        return
    from ..compare.shelf import temporary_folder

    with temporary_folder() as folder:
        yield folder
