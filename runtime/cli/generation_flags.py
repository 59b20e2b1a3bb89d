"""The options of `vlmedge run` that control generation."""

from __future__ import annotations

from typing import Annotated

import typer

from ..bundle.generation_defaults import MAX_PENALTY, MAX_TEMPERATURE
from ..options import DEFAULT_MAX_NEW_TOKENS

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        min=1,
        help="Longest answer, in tokens.",
        show_default=f"the bundle's, else {DEFAULT_MAX_NEW_TOKENS}",
    ),
]
MinNewTokens = Annotated[
    int | None,
    typer.Option(
        "--min-new-tokens",
        min=0,
        help="Don't end the answer before it has this many tokens.",
        show_default="the bundle's",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=MAX_TEMPERATURE,
        help="Sample with this temperature; 0 is greedy.",
        show_default="the bundle's",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Sample among the k likeliest tokens; 0 is all of them.",
        show_default="the bundle's",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Sample among the likeliest tokens that hold this share of probability.",
        show_default="the bundle's",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Sample among tokens with at least this share of the likeliest one's probability.",
        show_default="the bundle's",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=MAX_PENALTY,
        help="Above 1 tokens that were used already become less likely.",
        show_default="the bundle's",
    ),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Let no sequence of this many tokens occur twice; 0 allows all.",
        show_default="the bundle's",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Random seed for sampling.", show_default="another at each call"),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer before this text; repeatable.",
        show_default="the bundle's",
    ),
]
KeepSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--keep-special-tokens",
        help="Print special tokens too, such as <|box_start|> around coordinates.",
    ),
]
AllowToken = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-token",
        metavar="TOKEN",
        help="Read this special token in the question as such, not as text; repeatable.",
        show_default="none",
    ),
]
