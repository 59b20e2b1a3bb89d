"""Draw a table of numbers as an SVG heat map: layers by picture size, or any rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from .svg import CHAR_WIDTH, MINUS, WIDTH, drawing, element, format_number

NUM_SHADES = 10  # classes heat-0 (good) to heat-9 (bad) of the style sheet
ROW_HEIGHT = 17
MIN_CELL_WIDTH, MAX_CELL_WIDTH = 16, 64
NUMBER_CHAR = 7.0  # pixels, of the cells' font
SHADE_WIDTH = 14
_SLANT = math.radians(50)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    unit: str,
    *,
    better: Literal["higher", "lower"] = "lower",
    is_log: bool = False,
    scale: tuple[float, float] | None = None,
    width: float = WIDTH,
    title: str = "",
    full_names: Sequence[str] = (),
    has_legend: bool = True,
    label: str = "",
) -> str:
    """Draw a heat map; the worse a cell, the deeper its colour.

    Args:
        rows: names from top to bottom.
        columns: names from left to right.
        values: float[rows, columns]; None: nothing was measured there; NaN: the worst of all.
        unit: of the values, for the scale and under the pointer.
        better: which end of the scale is good.
        is_log: shades by ratios and not by differences; values above 0.
        scale: values of both ends of the shades, for maps that are to be compared; None: the
            least and the largest of this map.
        width: that it should not be wider than, in pixels; names and the least cells go before.
        title: above the map.
        full_names: of the rows, for what shows under the pointer; none: `rows`.
        has_legend: whether the shades are explained under it.
        label: what the map shows, for those who can't see it.

    Returns:
        SVG text.
    """
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(
            f"heat map has {len(rows)} rows and {len(columns)} columns, its values are "
            f"{[len(row) for row in values]} long"
        )
    left = 12 + CHAR_WIDTH * max((len(name) for name in rows), default=0)
    longest = CHAR_WIDTH * max((len(name) for name in columns), default=0)
    heading = 20 if title else 0
    top = heading + 14 + longest * math.sin(_SLANT)
    # The last slanted name leans out to the right
    lean = CHAR_WIDTH * len(columns[-1]) * math.cos(_SLANT) if columns else 0
    fitting = (width - left - lean) / max(len(columns), 1)
    cell = min(max(fitting, MIN_CELL_WIDTH), MAX_CELL_WIDTH)
    shade = _Shades(values, better, is_log, scale)
    numbers = [[None if value is None else _short(value) for value in row] for row in values]
    widest = max((len(text) for row in numbers for text in row if text), default=0)
    parts = [element("text", title, class_="label strong", x=4, y=14)] if title else []
    for index, name in enumerate(columns):
        x, y = left + (index + 0.5) * cell, top - 6
        turned = f"rotate(-50 {x:.1f} {y:.1f})"
        parts.append(element("text", name, class_="label", x=x, y=y, transform=turned))
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + i * ROW_HEIGHT
        parts.append(element("text", name, class_="label end", x=left - 6, y=y + ROW_HEIGHT * 0.72))
        for j, value in enumerate(row):
            if value is None:
                continue
            x, level = left + j * cell, shade.level(value)
            full = full_names[i] if full_names else name
            where = f"{full} {columns[j]}: {format_number(value)} {unit}".rstrip()
            box = {"x": x, "y": y, "width": cell - 1, "height": ROW_HEIGHT - 1}
            parts.append(element("rect", title=where, class_=f"heat-{level}", **box))
            if cell >= NUMBER_CHAR * widest + 3:
                middle, base = x + (cell - 1) / 2, y + ROW_HEIGHT * 0.72
                text = numbers[i][j] or ""
                parts.append(element("text", text, class_=f"cell on-{level}", x=middle, y=base))
    height = top + len(rows) * ROW_HEIGHT
    needed = max(left + len(columns) * cell + max(lean - cell * 0.5, 0), CHAR_WIDTH * len(title))
    if has_legend:
        strip, strip_width = shade.draw_scale(4, height + 10, unit)
        parts += strip
        needed, height = max(needed, 4 + strip_width), height + 38
    return drawing(needed + 4, height, label, parts)


def heat_legend(
    values: Sequence[Sequence[float | None]],
    unit: str,
    *,
    better: Literal["higher", "lower"] = "lower",
    is_log: bool = False,
    scale: tuple[float, float] | None = None,
) -> str:
    """Draw the legend alone, for maps that share it; arguments as of `heat_map`."""
    strip, width = _Shades(values, better, is_log, scale).draw_scale(4, 0, unit)
    return drawing(width + 8, 26, "Shades of the maps", strip)


class _Shades:
    """Values -> shades."""

    def __init__(
        self,
        values: Sequence[Sequence[float | None]],
        better: str,
        is_log: bool,
        scale: tuple[float, float] | None,
    ) -> None:
        self.is_log, self.better = is_log, better
        measured = [value for row in values for value in row if value is not None]
        finite = [
            value for value in measured if math.isfinite(value) and not (is_log and value <= 0)
        ]
        self.is_given = scale is not None
        if scale:
            finite = list(scale)
        self.low, self.high = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def level(self, value: float) -> int:
        """0 (good) to NUM_SHADES - 1 (bad)."""
        if math.isnan(value):
            return NUM_SHADES - 1
        low, high = self._scaled(self.low), self._scaled(self.high)
        span = high - low
        clipped = min(max(self._scaled(value), low), high)
        share = (clipped - low) / span if span > 0 else 0.0
        bad = 1 - share if self.better == "higher" and span > 0 else share
        return min(int(bad * NUM_SHADES), NUM_SHADES - 1)

    def _scaled(self, value: float) -> float:
        if not self.is_log:
            return value
        return math.log10(value) if value > 0 else -math.inf

    def draw_scale(self, x: float, y: float, unit: str) -> tuple[list[str], float]:
        """The legend, a strip of all shades between the numbers they stand for; and its width."""
        higher = self.better == "higher"
        good, bad = (self.high, self.low) if higher else (self.low, self.high)
        beyond = ("≥ ", "≤ ") if higher else ("≤ ", "≥ ")
        first, last = (
            f"{sign if self.is_given else ''}{format_number(value)} {unit}".rstrip()
            for sign, value in zip(beyond, (good, bad), strict=True)
        )
        start = x + 12 + CHAR_WIDTH * len(first)
        parts = [element("text", first, class_="label", x=x, y=y + 14)]
        size = {"y": y + 4, "width": SHADE_WIDTH, "height": 12}
        parts += [
            element("rect", class_=f"heat-{i}", x=start + SHADE_WIDTH * i, **size)
            for i in range(NUM_SHADES)
        ]
        end = start + SHADE_WIDTH * NUM_SHADES + 8
        parts.append(element("text", last, class_="label", x=end, y=y + 14))
        return parts, end + CHAR_WIDTH * len(last) - x


def _short(value: float) -> str:
    """A number that fits a cell."""
    if math.isfinite(value) and 10 <= abs(value) < 1000:
        return f"{value:.0f}".replace("-", MINUS)
    return f"{value:.1f}".replace("-", MINUS) if 1 <= abs(value) < 10 else format_number(value)
