"""`vlmedge plan`: the command line of the planner."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ...quant.exit_code import FAILED, errors_exit_with_2
from ...runtime.console import make_progress, print_json
from ...runtime.interruption import NOTHING_WRITTEN, interruptible
from ..lowering.targets import TARGETS
from .devices import DEVICES, find_device
from .placement import DtypeOption

if TYPE_CHECKING:
    from .fit import Alternative
    from .placement import Setup
    from .plan import Plan, Request

DEFAULT_IMAGE = "1280x720"
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min)?")


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|BUNDLE",
            help="A folder with config.json (weights are not needed), a hub id, or a bundle.",
            show_default=False,
        ),
    ],
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"The board: {', '.join([*DEVICES, 'this'])}."),
    ] = "this",
    image: Annotated[
        str, typer.Option(metavar="WxH", help="Size of a picture, and of a clip's frames.")
    ] = DEFAULT_IMAGE,
    images: Annotated[int, typer.Option(min=0, help="Pictures in the request.")] = 1,
    video: Annotated[
        str,
        typer.Option(
            metavar="SECONDS",
            help="A clip besides, sampled at 2 frames a second: 30s.",
            show_default="none",
        ),
    ] = "0s",
    question_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the question.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 256,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the cache.", show_default="what the request takes"),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Limit of a picture.", show_default="the model's own"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="How it will be quantized: a preset, a TOML file, or float.",
            show_default="as it is",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help=f"Whose graphs: {', '.join(TARGETS)}.", show_default="the board's usual"),
    ] = None,
    dtype: Annotated[DtypeOption, typer.Option(help="What TensorRT computes in.")] = "bf16",
    batch: Annotated[int, typer.Option(min=1, help="Sequences answered together.")] = 1,
    split: Annotated[int, typer.Option(min=1, help="Consecutive engines of the decoder.")] = 1,
    separate_lm_head: Annotated[
        bool, typer.Option("--separate-lm-head", help="The last matrix as an engine of its own.")
    ] = False,
    count_scores: Annotated[
        bool,
        typer.Option(
            "--count-scores", help="Plan as if TensorRT did not fuse the ViT's attention."
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print where numbers are from and what is assumed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Say whether a model fits a board, how fast it may be, and what fits if it doesn't.

    Tokens and the bytes of weights and cache are exact. Activations are an upper
    bound. What CUDA, TensorRT and a build take is assumed, times are estimates:
    --explain says from what.

    Exit codes: 0 it fits, 1 it does not, 2 a wrong option, or a model that can't be read.
    """
    with errors_exit_with_2("plan"):
        from ...runtime.bench import parse_size
        from .placement import make_setup
        from .plan import Request
        from .planner import make_plan
        from .report import make_json, print_plan
        from .sources import open_model
        from .this_machine import find_this

        width, height = parse_size(image)
        request = Request(
            width=width,
            height=height,
            num_images=images,
            video_s=parse_seconds(video),
            num_text_tokens=question_tokens,
            num_new_tokens=new_tokens,
            context=context,
            max_pixels=max_pixels,
            batch=batch,
            split=split,
            separate_lm_head=separate_lm_head,
        )
        board = find_this() if device == "this" else find_device(device)
        opened = open_model(model)

        def make(name: str | None) -> Setup:
            return make_setup(opened, board, name, dtype, target, count_scores=count_scores)

        with interruptible(lambda: NOTHING_WRITTEN), make_progress(of_bytes=False) as bar:
            bar.add_task("planning", total=None)
            setup = make(recipe)
            made = make_plan(setup, request)
            alternatives = list_alternatives(made, request, make)
        if as_json:
            print_json(make_json(made, alternatives))
        else:
            print_plan(made, alternatives, explain=explain)
    if not made.fits:
        raise typer.Exit(FAILED)


def parse_seconds(text: str) -> float:
    """A number with or without a unit, as in 30, 30s or 2min -> seconds.

    Raises:
        ValueError: anything else.
    """
    match = _SECONDS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"video is {text!r}, needed seconds, as in 30s")
    return float(match[1]) * (60 if match[2] == "min" else 1)


def list_alternatives(
    made: Plan, request: Request, make: Callable[[str | None], Setup]
) -> list[Alternative]:
    """What fits: picture and context; where it doesn't, also parts of a build, and a recipe."""
    from .fit import find_context, find_picture, find_recipe, find_residency, find_split
    from .precision import FLOAT, list_recipes

    setup = made.setup
    found = [find_picture(setup, request), find_context(setup, request), find_residency(made)]
    parts = None
    runs_in_turn = made.run_one_graph <= made.run.free_bytes
    if runs_in_turn and made.build and not made.build.fits:
        parts = find_split(setup, request)
        found.append(parts)
    is_only_built_whole = made.run.fits and parts is not None and not made.prompt.problem
    if not made.fits and not is_only_built_whole and setup.model.precision is None:
        found.append(find_recipe(request, [FLOAT, *list_recipes()], make))
    return [each for each in found if each is not None]
