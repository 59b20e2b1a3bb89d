"""A table of numbers -> an SVG heat map: layers by picture size, or any other rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from .svg import MINUS, drawing, element, format_number

NUM_SHADES = 10  # classes heat-0 (good) to heat-9 (bad) of the style sheet
ROW_HEIGHT = 16
CHAR_WIDTH = 7.0  # of the labels' 11 px font
MAX_WIDTH = 880
MIN_CELL_WIDTH, MAX_CELL_WIDTH = 16, 64
NUMBERS_FROM = 30  # cells as wide as this hold their number
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
    top = 12 + CHAR_WIDTH * max((len(name) for name in columns), default=0) * math.sin(_SLANT)
    cell = min(max((MAX_WIDTH - left) / max(len(columns), 1), MIN_CELL_WIDTH), MAX_CELL_WIDTH)
    shade = _Shades(values, better, is_log, scale)
    parts = []
    for index, name in enumerate(columns):
        x, y = left + (index + 0.4) * cell, top - 6
        turned = f"rotate(-50 {x:.1f} {y:.1f})"
        parts.append(element("text", name, class_="label", x=x, y=y, transform=turned))
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + i * ROW_HEIGHT
        parts.append(element("text", name, class_="label end", x=left - 6, y=y + ROW_HEIGHT * 0.72))
        for j, value in enumerate(row):
            if value is None:
                continue
            x, level = left + j * cell, shade.level(value)
            number = format_number(value)
            where = f"{name} {columns[j]}: {number} {unit}".rstrip()
            parts.append(
                element(
                    "rect",
                    title=where,
                    class_=f"heat-{level}",
                    x=x,
                    y=y,
                    width=cell - 1,
                    height=ROW_HEIGHT - 1,
                )
            )
            if cell >= NUMBERS_FROM:
                middle, base = x + (cell - 1) / 2, y + ROW_HEIGHT * 0.7
                text = _short(value)
                parts.append(element("text", text, class_=f"cell on-{level}", x=middle, y=base))
    bottom = top + len(rows) * ROW_HEIGHT
    parts += shade.draw_scale(left, bottom + 10, unit)
    # The last slanted name leans out to the right
    slant = CHAR_WIDTH * len(columns[-1]) * math.cos(_SLANT) if columns else 0
    width = max(left + len(columns) * cell + max(slant - cell * 0.6, 0), left + 320)
    return drawing(width, bottom + 38, label, parts)


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

    def draw_scale(self, x: float, y: float, unit: str) -> list[str]:
        """The legend: a strip of all shades between the numbers they stand for."""
        higher = self.better == "higher"
        good, bad = (self.high, self.low) if higher else (self.low, self.high)
        beyond = ("≥ ", "≤ ") if higher else ("≤ ", "≥ ")
        first, last = (
            f"{sign if self.is_given else ''}{format_number(value)} {unit}".rstrip()
            for sign, value in zip(beyond, (good, bad), strict=True)
        )
        start = x + 12 + CHAR_WIDTH * len(first)
        parts = [element("text", first, class_="label", x=x, y=y + 14)]
        parts += [
            element("rect", class_=f"heat-{i}", x=start + 14 * i, y=y + 4, width=14, height=12)
            for i in range(NUM_SHADES)
        ]
        end = start + 14 * NUM_SHADES + 8
        return [*parts, element("text", last, class_="label", x=end, y=y + 14)]


def _short(value: float) -> str:
    """A number that fits a cell."""
    if math.isfinite(value) and 10 <= abs(value) < 1000:
        return f"{value:.0f}".replace("-", MINUS)
    return f"{value:.1f}".replace("-", MINUS) if 1 <= abs(value) < 10 else format_number(value)
