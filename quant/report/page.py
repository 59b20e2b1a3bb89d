"""Put sections of tables, plots and cards into one HTML file that needs no other, and no script.

What is written to the page is escaped; only plots of ours and pictures as data URIs are put in as
they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2
from markupsafe import Markup, escape

from ...runtime import __version__
from ..files.grammar import counted as counted

State = Literal["pass", "fail", "open", "none"]


class Cell(NamedTuple):
    """Text in a table.

    Attributes:
        style: "num" (to the right), "name", "ok", "bad", "open" (undecided), "quiet", or several of
            them; with "verdict" it stands beside the name on a phone, as "ok", "bad" and "open" do.
        note: a second line in small type.
    """

    text: str
    style: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names.

    Attributes:
        columns: (name, style of the heading).
        summary: what a folded table is called; "": it is not folded.
    """

    columns: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    summary: str = ""
    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot of plots.py or heat_map.py with its caption.

    Attributes:
        svg: as it is drawn on a screen.
        narrow: the same for a phone; "": it fits there as it is.
    """

    svg: str
    caption: str
    narrow: str = ""
    kind: Literal["figure"] = "figure"


class Part(NamedTuple):
    """A piece of an answer, and whether the other side's differs there."""

    text: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One side's answer: who gave it, its pieces, a state by its score."""

    who: str
    parts: tuple[Part, ...]
    score: str = ""
    state: State = "none"


@dataclass(frozen=True, slots=True)
class Card:
    """One example whose answers differ.

    Attributes:
        pictures: data URIs.
        note: why there is no picture, or how many more there are.
    """

    title: str
    tag: str
    state: State
    question: str
    accepted: tuple[str, ...]
    answers: tuple[Answer, ...]
    pictures: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cards:
    """Examples, one below the other."""

    cards: tuple[Card, ...]
    kind: Literal["cards"] = "cards"


@dataclass(frozen=True, slots=True)
class Section:
    """One heading of the page.

    Attributes:
        anchor: for links to it.
        texts: paragraphs above the items.
    """

    anchor: str
    title: str
    texts: tuple[str, ...] = ()
    items: tuple[Table | Figure | Cards, ...] = ()


@dataclass(frozen=True, slots=True)
class Headline:
    """What the reader must know: above everything else.

    Attributes:
        facts: (name, value): what was compared.
        points: reasons, one a line.
    """

    state: State
    badge: str
    title: str
    facts: tuple[tuple[str, str], ...] = ()
    points_title: str = ""
    points: tuple[str, ...] = ()
    note: str = ""


def render_page(title: str, headline: Headline, sections: Sequence[Section]) -> str:
    """The text of an HTML file.

    Args:
        title: of the browser's tab and of the page.
        headline: verdict, or what the page is about.
        sections: in order; the page lists them on top.
    """
    text = _template().render(
        title=title, headline=headline, sections=sections, css=_style(), version=__version__
    )
    return text.replace("\0", "\ufffd")  # the one character that no page may have


def num(text: str, style: str = "") -> Cell:
    """A number's cell."""
    return Cell(text, f"num {style}".strip())


def _break_names(text: str) -> Markup:
    """A layer's name may go on in the next line after a dot or plus, where a screen is narrow."""
    return Markup(re.sub(r"(?<=\w[.+])(?=\w)(?!(?<=\d\.)\d)", "<wbr>", str(escape(text))))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["breakable"] = _break_names
    environment.filters["plot"] = Markup  # svg.element has escaped every name in it
    return environment.from_string(_read("page.html.jinja"))


@cache
def _style() -> Markup:
    return Markup(_read("page.css"))


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
