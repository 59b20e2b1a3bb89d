"""Short clips: one digit moves, sometimes another stands still -> Example."""

from __future__ import annotations

from random import Random

from sample.examples import WAYS, Example
from sample.glyphs import (
    draw_text,
    make_canvas,
    measure_height,
    measure_text,
    pick_colors,
    pick_font,
)

WHICH_QUESTIONS = ("Which digit moves?", "Which digit is moving?")
WAY_QUESTIONS = ("Which way does the digit move?", "Where does the digit go?")

MARGIN_PX = 2


def draw_clip(
    rng: Random, size: tuple[int, int], level: float = 1.0, num_frames: int = 4
) -> Example:
    """`num_frames` frames; the moving digit has a half of the frame (along its way) for itself."""
    del level
    width, height = size
    name, em = pick_font(rng), rng.randint(26, 34)
    tall = measure_height(name, em)
    way = rng.choice(tuple(WAYS))
    dx, dy = WAYS[way]
    moving, still = (str(d) for d in rng.sample(range(10), 2))
    wide = max(measure_text(name, em, moving), measure_text(name, em, still))
    span = width - 2 * MARGIN_PX - wide if dx else height - 2 * MARGIN_PX - tall
    step = min(rng.uniform(3, 6), span / (num_frames - 1))
    travel = step * (num_frames - 1)
    # Along its way the digit starts where its whole travel fits; across it has one half, the other
    # digit the other.
    start = MARGIN_PX + rng.uniform(0, span - travel) + (travel if dx + dy < 0 else 0)
    first_half = rng.random() < 0.5
    across = height if dx else width
    digit_across = tall if dx else wide

    def lane(of_mover: bool) -> float:
        low = MARGIN_PX if of_mover == first_half else across / 2 + 1
        return rng.uniform(low, max(low, low + across / 2 - digit_across - MARGIN_PX - 1))

    mover_lane, still_lane, still_along = lane(True), lane(False), MARGIN_PX + rng.uniform(0, span)
    has_still = rng.random() < 0.6
    paper, ink = pick_colors(rng)
    frames, glyphs = [], []
    for frame in range(num_frames):
        image, draw = make_canvas(size, paper)
        along = start + (dx + dy) * step * frame
        left, top = (along, mover_lane) if dx else (mover_lane, along)
        written = draw_text(draw, left, top + tall, moving, (name, em), ink, way)
        if has_still:
            left, top = (still_along, still_lane) if dx else (still_lane, still_along)
            written += draw_text(draw, left, top + tall, still, (name, em), ink, "still")
        frames.append(image)
        glyphs.append(tuple(written))
    if rng.random() < 0.5:
        question, answer = rng.choice(WHICH_QUESTIONS), moving
    else:
        question, answer = rng.choice(WAY_QUESTIONS), way
    return Example("clip", tuple(frames), tuple(glyphs), question, answer)
