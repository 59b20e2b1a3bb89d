"""Text on a canvas, one glyph at a time -> the ink, and where every glyph lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import matplotlib
from PIL import Image, ImageDraw, ImageFont

# Fonts that the matplotlib package carries under a free licence: three families, two weights each.
FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
)

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Glyph:
    """One character on a picture."""

    char: str
    index: int  # place in its own string, from 0; of a bar's name: the height in eighths
    box: tuple[float, float, float, float]  # left, top, right, bottom, pixels of the drawn picture
    tag: str = ""  # beyond the character: the row's item, the bar's rank, the way it moves

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels of the drawn picture."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@cache
def read_font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A font from matplotlib's data folder, at an em of size_px pixels."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size_px
    )


@cache
def _advance(name: str, size_px: int, char: str) -> float:
    return read_font(name, size_px).getlength(char)


@cache
def _ink_box(name: str, size_px: int, char: str) -> tuple[int, int, int, int]:
    return read_font(name, size_px).getbbox(char, anchor="ls")


def measure_text(name: str, size_px: int, text: str) -> float:
    """Width in pixels of the text, glyph after glyph without kerning."""
    return sum(_advance(name, size_px, char) for char in text)


def measure_height(name: str, size_px: int) -> int:
    """Height in pixels of a digit."""
    _, top, _, bottom = _ink_box(name, size_px, "8")
    return bottom - top


def draw_text(
    draw: ImageDraw.ImageDraw,
    left: float,
    baseline: float,
    text: str,
    font: tuple[str, int],
    color: Color,
    tag: str = "",
) -> list[Glyph]:
    """Write the text from `left` on the baseline; spaces leave no glyph."""
    glyphs = []
    for index, char in enumerate(text):
        x, y = round(left), round(baseline)
        if char != " ":
            draw.text((x, y), char, font=read_font(*font), fill=color, anchor="ls")
            ink = _ink_box(*font, char)
            glyphs.append(Glyph(char, index, (x + ink[0], y + ink[1], x + ink[2], y + ink[3]), tag))
        left += _advance(*font, char)
    return glyphs


def pick_font(rng: Random) -> str:
    """One of FONT_FILES."""
    return rng.choice(FONT_FILES)


def fit_font(rng: Random, name: str, text: str, width_px: float, sizes_px: range) -> int:
    """A random size, made smaller (never under the range's start) until the text fits the width."""
    size = rng.choice(sizes_px)
    while size > sizes_px.start and measure_text(name, size, text) > width_px:
        size -= 1
    return size


def pick_colors(rng: Random) -> tuple[Color, Color]:
    """(paper, ink): dark on light, one time in six light on dark."""
    light = tuple(rng.randint(200, 255) for _ in range(3))
    dark = tuple(rng.randint(0, 90) for _ in range(3))
    return (dark, light) if rng.random() < 1 / 6 else (light, dark)


def make_canvas(size: tuple[int, int], paper: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An RGB picture (width, height) of one color, and the pen for it."""
    image = Image.new("RGB", size, paper)
    return image, ImageDraw.Draw(image)
