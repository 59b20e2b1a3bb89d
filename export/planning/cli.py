"""`vlmedge plan`: the command line of the planner."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from ...quant.cli.exit_code import FAILED, errors_exit_with_2
from ...quant.recipe.preset_names import find_recipe, list_presets
from ...runtime.terminal.completion import complete_words
from ...runtime.terminal.console import make_progress, print_json
from ...runtime.terminal.interruption import NOTHING_WRITTEN, interruptible
from ...runtime.terminal.size_text import parse_size
from ...runtime.terminal.wrong_option import check_word, wrong_options_exit_with_2
from ..lowering.options import DtypeOption
from ..lowering.targets import TARGETS
from .devices import DEVICES, find_device
from .free_memory import THIS, choose_free
from .this_machine import find_this

if TYPE_CHECKING:
    from .placement import Setup

FLOAT = "float"  # in place of a recipe: nothing is quantized
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
        typer.Option(
            metavar="NAME",
            help=f"The board: {', '.join([*DEVICES, THIS])}.",
            autocompletion=complete_words(lambda: [*DEVICES, THIS]),
        ),
    ] = "this",
    desktop: Annotated[
        bool | None,
        typer.Option(
            "--desktop/--headless",
            help="Whether the board's desktop runs and takes memory.",
            show_default="desktop, as NVIDIA's images start",
        ),
    ] = None,
    free_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="Memory that is free on the board, as free -h there says under available.",
            show_default="by --desktop or --headless",
        ),
    ] = None,
    image: Annotated[
        str, typer.Option(metavar="WxH", help="Size of a picture, and of a clip's frames.")
    ] = DEFAULT_IMAGE,
    images: Annotated[int, typer.Option(min=0, help="Pictures in the request.")] = 1,
    video: Annotated[
        str,
        typer.Option(
            metavar="SECONDS",
            help="Length of a clip besides, sampled at 2 frames a second, as in 30s.",
            show_default="none",
        ),
    ] = "0s",
    question_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the question.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 256,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of the cache.",
            show_default="what the request takes, or what the graph fixes",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest picture, in pixels; larger ones are shrunk.",
            show_default="the model's own",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"Recipe that it will be quantized by: {', '.join(list_presets())}, a TOML file, "
            "or float.",
            show_default="as it is",
            autocompletion=complete_words(lambda: [*list_presets(), FLOAT]),
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"TensorRT that the graphs are for: {', '.join(TARGETS)}.",
            show_default="the board's usual",
            autocompletion=complete_words(lambda: TARGETS),
        ),
    ] = None,
    dtype: Annotated[DtypeOption, typer.Option(help="Type that TensorRT computes in.")] = "bf16",
    batch: Annotated[int, typer.Option(min=1, help="Sequences answered together.")] = 1,
    split: Annotated[
        int, typer.Option(min=1, help="Number of engines that the decoder is built as.")
    ] = 1,
    separate_lm_head: Annotated[
        bool,
        typer.Option("--separate-lm-head", help="Build the last matrix as an engine of its own."),
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

    Exit codes: 0 it fits, 1 it does not, 2 a wrong option, or a model that can't
    be read.
    """
    with wrong_options_exit_with_2():
        width, height = parse_size(image)
        seconds = parse_seconds(video)
        if device != THIS:
            check_word("--device", device, [*DEVICES, THIS])
        if target is not None:
            check_word("--target", target, list(TARGETS))
        if recipe is not None and recipe != FLOAT:
            find_recipe(recipe)
        board = choose_free(
            find_this() if device == THIS else find_device(device),
            desktop=desktop,
            free_gib=free_memory,
        )
    with errors_exit_with_2("plan"):
        from .advice import free_desktop, list_alternatives
        from .placement import make_setup
        from .plan import Request
        from .planner import make_plan
        from .report import make_json, print_plan
        from .sources import open_model

        request = Request(
            width=width,
            height=height,
            num_images=images,
            video_s=seconds,
            num_text_tokens=question_tokens,
            num_new_tokens=new_tokens,
            context=context,
            max_pixels=max_pixels,
            batch=batch,
            split=split,
            separate_lm_head=separate_lm_head,
        )
        opened = open_model(model)

        def make(name: str | None) -> Setup:
            return make_setup(opened, board, name, dtype, target, count_scores=count_scores)

        with interruptible(lambda: NOTHING_WRITTEN), make_progress(of_bytes=False) as bar:
            bar.add_task("planning", total=None)
            setup = make(recipe)
            made = make_plan(setup, request)
            alternatives = list_alternatives(made, request, make)
            if not made.fits and (bare := free_desktop(made, request)):
                alternatives.append(bare)
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
        raise ValueError(f"--video is {text!r}, needed seconds, as in 30s")
    return float(match[1]) * (60 if match[2] == "min" else 1)
