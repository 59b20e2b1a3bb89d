"""Things to look at more than to read: a bar chart, a dial -> Example."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from random import Random

from sample.examples import BAR_NAMES, DIAL_STEPS, Example
from sample.glyphs import (
    Glyph,
    draw_text,
    make_canvas,
    measure_height,
    measure_text,
    pick_colors,
    pick_font,
)

HIGHEST_QUESTIONS = ("Which bar is highest?", "Which bar is the tallest?")
LOWEST_QUESTIONS = ("Which bar is lowest?", "Which bar is the shortest?")
DIAL_QUESTIONS = ("What does the dial show?", "Read the dial.")

LABEL_ROOM_PX = 30  # under the bars, for their names
DIAL_START_DEG = (
    135.0  # the needle's angle at 0, clockwise from three o'clock (the screen's y points down)
)
DIAL_SWEEP_DEG = 270.0


def _pick_heights(rng: Random, num_bars: int, room: float) -> list[float]:
    """Heights in pixels whose order is plain to see."""
    while True:
        heights = [rng.uniform(0.1, 1) * room for _ in range(num_bars)]
        order = sorted(heights)
        gaps = [b - a for a, b in pairwise(order)]
        if min(gaps) > room / 12 and min(gaps[0], gaps[-1]) > room / 5:
            return heights


def draw_bars(rng: Random, size: tuple[int, int], level: float = 1.0) -> Example:
    """Three to five bars, a letter under each.

    The highest stands out from the second, and the second lowest from the lowest, by a fifth of the
    room; the others differ by a twelfth.
    """
    del level
    width, height = size
    num_bars = rng.randint(3, min(5, width // 34))
    names = rng.sample(BAR_NAMES, num_bars)
    room = height - LABEL_ROOM_PX - 8
    heights = _pick_heights(rng, num_bars, room)
    paper, ink = pick_colors(rng)
    image, draw = make_canvas(size, paper)
    name, em = pick_font(rng), rng.randint(20, 26)
    left, pitch = rng.uniform(2, 8), (width - 10) / num_bars
    floor = height - LABEL_ROOM_PX
    thick = pitch * rng.uniform(0.45, 0.8)
    one_color = rng.random() < 0.5
    fill = tuple(rng.randint(30, 220) for _ in range(3))
    order = sorted(heights)
    glyphs: list[Glyph] = []
    for i, (letter, tall) in enumerate(zip(names, heights, strict=True)):
        middle = left + pitch * (i + 0.5)
        if not one_color:
            fill = tuple(rng.randint(30, 220) for _ in range(3))
        while (
            sum(abs(a - b) for a, b in zip(fill, paper, strict=True)) < 150
        ):  # bars must stand out from the paper
            fill = tuple(rng.randint(0, 255) for _ in range(3))
        draw.rectangle((middle - thick / 2, floor - tall, middle + thick / 2, floor), fill=fill)
        tag = "highest" if tall == order[-1] else "lowest" if tall == order[0] else "between"
        baseline = floor + (LABEL_ROOM_PX + measure_height(name, em)) / 2
        place = middle - measure_text(name, em, letter) / 2
        (glyph,) = draw_text(draw, place, baseline, letter, (name, em), ink, tag)
        # A bar's name is no string with places: the index tells the bar's height, in eighths.
        glyphs.append(replace(glyph, index=min(7, int(8 * tall / room))))
    draw.line((left, floor, width - 3, floor), fill=ink, width=1)
    if rng.random() < 0.5:
        question, answer = rng.choice(HIGHEST_QUESTIONS), names[heights.index(order[-1])]
    else:
        question, answer = rng.choice(LOWEST_QUESTIONS), names[heights.index(order[0])]
    return Example("bars", (image,), (tuple(glyphs),), question, answer)


def draw_dial(rng: Random, size: tuple[int, int], level: float = 1.0) -> Example:
    """A round dial of 0 to 10 or 0 to 100, eleven ticks, three numbers, a needle on one tick."""
    del level
    width, height = size
    radius = rng.uniform(48, max(48.0, min(width, height) / 2 - 3))
    x = rng.uniform(radius + 2, width - radius - 2)
    y = rng.uniform(radius + 2, height - radius - 2)
    paper, ink = pick_colors(rng)
    image, draw = make_canvas(size, paper)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=2)
    unit = rng.choice((1, 10))
    step = rng.randint(0, DIAL_STEPS)
    name, em = pick_font(rng), rng.randint(16, 19)

    def at(place: float, share: float) -> tuple[float, float]:
        angle = math.radians(DIAL_START_DEG + DIAL_SWEEP_DEG * place / DIAL_STEPS)
        return x + radius * share * math.cos(angle), y + radius * share * math.sin(angle)

    glyphs: list[Glyph] = []
    for tick in range(DIAL_STEPS + 1):
        draw.line((*at(tick, 0.86), *at(tick, 0.98)), fill=ink, width=2 if tick % 5 == 0 else 1)
        if tick % 5 == 0:
            text = str(tick * unit)
            label_x, label_y = at(tick, 0.62 if tick % 10 == 0 else 0.64)
            label_x -= measure_text(name, em, text) / 2
            glyphs += draw_text(
                draw, label_x, label_y + measure_height(name, em) / 2, text, (name, em), ink
            )
    needle = rng.choice(((200, 30, 30), (30, 60, 200), ink))
    draw.line((x, y, *at(step, 0.84)), fill=needle, width=rng.randint(3, 4))
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=needle)
    # The hub carries the reading.
    glyphs.append(Glyph("", 0, (x - 5, y - 5, x + 5, y + 5), f"dial {step}"))
    return Example("dial", (image,), (tuple(glyphs),), rng.choice(DIAL_QUESTIONS), str(step * unit))
