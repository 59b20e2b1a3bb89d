"""Things with text: a number placed freely, a price tag, a receipt, a practice page -> Example."""

from __future__ import annotations

from random import Random

from sample.examples import BAR_NAMES, ITEMS, Example
from sample.glyphs import (
    Glyph,
    draw_text,
    fit_font,
    make_canvas,
    measure_height,
    measure_text,
    pick_colors,
    pick_font,
)

NUMBER_QUESTIONS = ("What number is shown?", "Read the number.", "Which number do you see?")
PRICE_QUESTIONS = ("What is the price?", "How much does it cost?")
ITEM_QUESTIONS = ("Which item is it?", "What is sold here?")
TOTAL_QUESTIONS = ("What is the total?", "How much is the total?")
ROW_QUESTIONS = ("How much is the {item}?", "What is the price of the {item}?")

MARGIN_PX = 4


def _price(rng: Random, most_cents: int) -> str:
    cents = rng.randrange(50, most_cents)
    return f"{cents // 100}.{cents % 100:02d}"


def draw_number(rng: Random, size: tuple[int, int], level: float = 1.0) -> Example:
    """A number of 1 to 5 digits placed freely; the level (0 to 1) is how many digits may come."""
    width, height = size
    name = pick_font(rng)
    room = width - 2 * MARGIN_PX
    largest = min(44, height - 2 * MARGIN_PX)
    most_digits = max(1, min(round(1 + 4 * level), int(room / measure_text(name, 26, "0"))))
    num_digits = rng.randint(1, most_digits)
    text = str(rng.randrange(10 ** (num_digits - 1) if num_digits > 1 else 0, 10**num_digits))
    em = fit_font(rng, name, text, room, range(26, largest + 1))
    paper, ink = pick_colors(rng)
    image, draw = make_canvas(size, paper)
    left = rng.uniform(MARGIN_PX, max(MARGIN_PX, width - MARGIN_PX - measure_text(name, em, text)))
    baseline = rng.uniform(MARGIN_PX + measure_height(name, em), height - MARGIN_PX)
    glyphs = draw_text(draw, left, baseline, text, (name, em), ink)
    return Example("number", (image,), (tuple(glyphs),), rng.choice(NUMBER_QUESTIONS), text)


def draw_price_tag(rng: Random, size: tuple[int, int], level: float = 1.0) -> Example:
    """An item's name over its price, on a label with a border."""
    del level
    width, height = size
    item, price = rng.choice(ITEMS), _price(rng, 10_000)
    sign = rng.choice(("", "$"))
    paper, ink = pick_colors(rng)
    image, draw = make_canvas(size, paper)
    border = rng.randint(1, 3)
    draw.rectangle((1, 1, width - 2, height - 2), outline=ink, width=border)
    room = width - 2 * (MARGIN_PX + border)
    glyphs: list[Glyph] = []
    middle = height / 2 + rng.uniform(-3, 3)
    name = pick_font(rng)
    for text, low, high, tag in ((item, 0, middle, item), (sign + price, middle, height, "")):
        em = fit_font(rng, name, text, room, range(22, min(40, int((high - low) * 0.95))))
        slack = max(0.0, room - measure_text(name, em, text))
        tall = measure_height(name, em)
        baseline = rng.uniform(
            low + tall + MARGIN_PX + border, max(low + tall + 8, high - MARGIN_PX - border - 1)
        )
        left = MARGIN_PX + border + rng.uniform(0, slack)
        written = draw_text(draw, left, baseline, text, (name, em), ink, tag)
        if (
            sign and not tag
        ):  # the sign is no part of the answer: its index is -1, the first digit's 0
            written = [Glyph(g.char, g.index - 1, g.box, g.tag) for g in written]
        glyphs += written
    question, answer = rng.choice(
        [(q, price) for q in PRICE_QUESTIONS] * 2 + [(q, item) for q in ITEM_QUESTIONS],
    )
    return Example("price tag", (image,), (tuple(glyphs),), question, answer)


def draw_receipt(rng: Random, size: tuple[int, int], level: float = 1.0) -> Example:
    """Rows of item and price, a rule, and their TOTAL; a row is at least 28 pixels high."""
    del level
    width, height = size
    most_rows = (height - 2 * MARGIN_PX) // 28
    num_items = rng.randint(1, max(1, min(3, most_rows - 1)))
    items = rng.sample(ITEMS, num_items)
    cents = [rng.randrange(50, 2_000) for _ in items]
    rows = [(item, f"{c // 100}.{c % 100:02d}") for item, c in zip(items, cents, strict=True)]
    total = f"{sum(cents) // 100}.{sum(cents) % 100:02d}"
    rows.append(("TOTAL", total))
    paper, ink = pick_colors(rng)
    image, draw = make_canvas(size, paper)
    name = pick_font(rng)
    room = width - 2 * MARGIN_PX
    widest = max((f"{a}8{b}" for a, b in rows), key=lambda text: measure_text(name, 23, text))
    em = fit_font(rng, name, widest, room, range(23, 29))
    pitch = rng.uniform(28, max(28.0, min(36.0, (height - 2 * MARGIN_PX) / len(rows))))
    spare_y = max(0.0, height - 2 * MARGIN_PX - pitch * len(rows))
    spare_x = max(0.0, room - measure_text(name, em, widest))
    left = MARGIN_PX + rng.uniform(0, spare_x / 2)
    right = width - MARGIN_PX - rng.uniform(0, spare_x / 2)
    baseline = (
        MARGIN_PX
        + rng.uniform(0, spare_y)
        + measure_height(name, em)
        + (pitch - measure_height(name, em)) / 2
    )
    glyphs: list[Glyph] = []
    for item, price in rows:
        if item == "TOTAL":
            line_y = baseline - measure_height(name, em) - (pitch - measure_height(name, em)) / 2
            draw.line((left, line_y, right, line_y), fill=ink, width=1)
        glyphs += draw_text(draw, left, baseline, item, (name, em), ink, item)
        glyphs += draw_text(
            draw, right - measure_text(name, em, price), baseline, price, (name, em), ink, item
        )
        baseline += pitch
    if rng.random() < 0.5:
        question, answer = rng.choice(TOTAL_QUESTIONS), total
    else:
        item, answer = rng.choice(rows[:-1])
        question = rng.choice(ROW_QUESTIONS).format(item=item)
    return Example("receipt", (image,), (tuple(glyphs),), question, answer)


def _pick_word(rng: Random) -> str:
    """What the other papers write: prices and numbers for the most part."""
    return rng.choice(
        (
            _price(rng, 10_000),
            ("$" if rng.random() < 0.5 else "") + _price(rng, 10_000),
            str(rng.randrange(10 ** rng.randint(1, 6))),
            str(rng.randrange(10 ** rng.randint(1, 6))),
            rng.choice((*ITEMS, "TOTAL")),
            rng.choice(BAR_NAMES),
        )
    )


def draw_page(rng: Random, size: tuple[int, int], level: float = 1.0) -> Example:
    """A page full of words, without a question: practice for the ViT, many glyphs for one look."""
    del level
    width, height = size
    paper, ink = pick_colors(rng)
    image, draw = make_canvas(size, paper)
    glyphs: list[Glyph] = []
    top = rng.uniform(MARGIN_PX, 16)
    while True:
        font = pick_font(rng), rng.choice((20, 22, 24, 26, 28, 32, 36, 40))
        tall = measure_height(*font)
        if top + tall > height - MARGIN_PX:
            break
        left, word = rng.uniform(MARGIN_PX, 24), _pick_word(rng)
        while left + measure_text(*font, word) <= width - MARGIN_PX:
            glyphs += draw_text(draw, left, top + tall, word, font, ink)
            left += measure_text(*font, word) + font[1] * rng.uniform(0.4, 1.2)
            word = _pick_word(rng)
        top += max(28, tall * rng.uniform(1.2, 1.5))
    return Example("page", (image,), (tuple(glyphs),), "", "")
