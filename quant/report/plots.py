"""Draw findings as lines, intervals and ranges in SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .layer_axis import draw_layer_axis, measure_layer_axis
from .svg import (
    CHAR_WIDTH,
    NARROW_WIDTH,
    WIDTH,
    Axis,
    drawing,
    element,
    fit_range,
    fixed,
    format_number,
)

LEGEND_HEIGHT = 16  # of a line of the legend
VALUE_WIDTH = 54  # right of a row's drawing, for its number


@dataclass(frozen=True, slots=True)
class Series:
    """One line or cloud of points.

    Attributes:
        name: for the legend.
        values: one an x; NaN: a gap.
        style: a class of the style sheet: "got", "reference", "worst", "quiet".
        is_points: dots, each named under the pointer, and no line between them.
    """

    name: str
    values: Sequence[float]
    style: str = "got"
    is_points: bool = False


def line_plot(
    series: Sequence[Series],
    *,
    y_label: str,
    x_label: str = "",
    names: Sequence[str] = (),
    marks: Sequence[tuple[int, str]] = (),
    is_log: bool = False,
    height: float = 260,
    width: float = WIDTH,
    label: str = "",
) -> str:
    """Draw series over 0, 1, 2, ...

    Args:
        series: of equal length.
        y_label: with the unit.
        x_label: what the numbers on the x axis count; "" for no numbers.
        names: of each x, under the axis as far as there is room, and under the pointer.
        marks: (x, text) of vertical lines that part the plot.
        is_log: y by powers of ten; values not above 0 lie on the lower edge.
        height: in pixels, of the plot with its heading.
        width: in pixels.
        label: what the plot shows, for those who can't see it.
    """
    num = max(len(one.values) for one in series)
    legend, legend_height = _draw_legend(series, y_label, 56, width)
    left, right, top, bottom = 56, 14, 34 + legend_height, 40 if x_label else 16
    if names:
        bottom = measure_layer_axis(names, width - left - right - 12)
        height += bottom - 16
    height += legend_height
    y = _y_axis([value for one in series for value in one.values], is_log, height - bottom, top)
    x = Axis(0, max(num - 1, 1), left + 6, width - right - 6)
    parts = _draw_y_axis(y, left, width - right)
    parts.append(element("text", y_label, class_="label strong", x=left, y=14))
    parts += legend
    if names:
        parts += draw_layer_axis(names, x, height - bottom)
    if x_label:
        ticks = [tick for tick in x.ticks(round(width / 80)) if tick == int(tick) and tick < num]
        for tick in ticks:
            at = x.pixel(tick)
            parts.append(
                element("text", f"{tick:.0f}", class_="label mid", x=at, y=height - bottom + 16)
            )
        middle = (left + width) / 2
        parts.append(element("text", x_label, class_="label mid", x=middle, y=height - 6))
    for index, text in marks:
        at = x.pixel(index - 0.5) if index else x.pixel(0)
        if index:
            parts.append(element("line", class_="mark", x1=at, x2=at, y1=top, y2=height - bottom))
        parts.append(element("text", text, class_="label", x=at + 5, y=top + 11))
    for one in series:
        parts += _draw_points(one, x, y, names) if one.is_points else [_draw_line(one, x, y)]
    return drawing(width, height, label or y_label, parts)


def interval_plot(
    rows: Sequence[tuple[str, float, float, float, str]],
    *,
    unit: str,
    width: float = WIDTH,
    label: str = "",
) -> str:
    """Draw differences with their intervals around a line at 0.

    Args:
        rows: (name, low, value, high, style), style "good", "bad" or "quiet".
        unit: of the values.
        width: in pixels; where names would take half of it, they stand above their rows.
        label: what the plot shows, for those who can't see it.
    """
    place = _Rows([row[0] for row in rows], width, 24)
    left, height = place.left, place.height
    low, high = fit_range([0.0, *(value for row in rows for value in row[1:4])])
    x = Axis(low, high, left + 8, width - VALUE_WIDTH - 12)
    parts = [
        part
        for tick in x.ticks(round((width - left) / 90))
        for part in (
            element(
                "line",
                class_="zero" if tick == 0 else "grid",
                x1=x.pixel(tick),
                x2=x.pixel(tick),
                y1=4,
                y2=height - 38,
            ),
            element("text", _signed(tick), class_="label mid", x=x.pixel(tick), y=height - 24),
        )
    ]
    parts.append(element("text", unit, class_="label end", x=width - 4, y=height - 8))
    for index, (name, first, value, last, style) in enumerate(rows):
        y = place.y(index)
        ends = f"{fixed(first, 1, sign=True)} to {fixed(last, 1, sign=True)} {unit}"
        title = f"{name}: {fixed(value, 1, sign=True)}, {ends}"
        parts.append(place.draw_name(index))
        x1, x2 = x.pixel(first), x.pixel(last)
        parts.append(
            element("line", title=title, class_=f"interval {style}", x1=x1, x2=x2, y1=y, y2=y)
        )
        parts.append(
            element("circle", title=title, class_=f"dot {style}", cx=x.pixel(value), cy=y, r=5)
        )
        parts.append(
            element(
                "text", fixed(value, 1, sign=True), class_="label", x=width - VALUE_WIDTH, y=y + 4
            )
        )
    return drawing(width, height, label, parts)


def range_plot(
    rows: Sequence[tuple[str, Sequence[float]]],
    *,
    unit: str,
    is_log: bool = True,
    width: float = WIDTH,
    label: str = "",
) -> str:
    """Draw how values spread: a line from least to most, a bar for the middle half, the median.

    Args:
        rows: (name, values), at least one value each.
        unit: of the values.
        is_log: by powers of ten; values not above 0 lie on the left edge.
        width: in pixels; where names would take half of it, they stand above their rows.
        label: what the plot shows, for those who can't see it.
    """
    place = _Rows([name for name, _ in rows], width, 26)
    left, height = place.left, place.height
    values = [value for _, found in rows for value in found]
    axis = _y_axis(values, is_log, left + 8, width - VALUE_WIDTH - 12)
    parts = []
    for tick in axis.ticks(round((width - left) / 90)):
        at = axis.pixel(tick)
        parts.append(element("line", class_="grid", x1=at, x2=at, y1=4, y2=height - 38))
        parts.append(element("text", format_number(tick), class_="label mid", x=at, y=height - 24))
    parts.append(element("text", unit, class_="label end", x=width - 4, y=height - 8))
    for index, (name, values) in enumerate(rows):
        y = place.y(index)
        parts.append(place.draw_name(index))
        finite = sorted(value for value in values if math.isfinite(value))
        if not finite:
            parts.append(element("text", "NaN", class_="label bad", x=left + 8, y=y + 4))
            continue
        least, low, median, high, most = (_quantile(finite, q) for q in (0, 0.25, 0.5, 0.75, 1))
        title = (
            f"{name}: median {format_number(median)}, {format_number(least)} to "
            f"{format_number(most)} {unit}, {len(values)} of them"
        )
        pixels = [axis.pixel(value) for value in (least, low, median, high, most)]
        parts.append(
            element(
                "line", title=title, class_="interval got", x1=pixels[0], x2=pixels[4], y1=y, y2=y
            )
        )
        half = {"x": pixels[1], "width": max(pixels[3] - pixels[1], 2), "y": y - 6, "height": 12}
        parts.append(element("rect", title=title, class_="half", **half))
        at = pixels[2]
        parts.append(
            element("line", title=title, class_="median", x1=at, x2=at, y1=y - 8, y2=y + 8)
        )
        at = width - VALUE_WIDTH
        parts.append(element("text", format_number(most), class_="label", x=at, y=y + 4))
    return drawing(width, height, label, parts)


def _y_axis(values: Sequence[float], is_log: bool, first: float, last: float) -> Axis:
    if not is_log:
        return Axis(*fit_range(values), first, last)
    positive = [value for value in values if 0 < value < math.inf] or [0.1, 1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    air = max((high - low) * 0.06, 0.1)
    return Axis(10 ** (low - air), 10 ** (high + air), first, last, is_log=True)


def _draw_y_axis(y: Axis, left: float, right: float) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = y.pixel(tick)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
        parts.append(element("text", format_number(tick), class_="label end", x=left - 6, y=at + 4))
    return parts


class _Rows:
    """Where the rows of a plot are, and their names: left of them, or above on a narrow plot."""

    def __init__(self, names: Sequence[str], width: float, step: float) -> None:
        self.names = names
        wide = 16 + CHAR_WIDTH * max(map(len, names))
        self.is_above = wide > width / 3
        self.left = 8.0 if self.is_above else wide
        self.step = step + 14 if self.is_above else step
        self.height = self.step * len(names) + 44

    def y(self, index: int) -> float:
        return self.step * index + self.step / 2 + (11 if self.is_above else 4)

    def draw_name(self, index: int) -> str:
        name, y = self.names[index], self.y(index)
        if self.is_above:
            return element("text", name, class_="label", x=self.left, y=y - 13)
        return element("text", name, class_="label end", x=self.left, y=y + 4)


def draw_twice(draw: Callable[[float], str]) -> tuple[str, str]:
    """A plot for a screen and one for a phone, whose text would be too small if it were shrunk."""
    return draw(WIDTH), draw(NARROW_WIDTH)


def _draw_legend(
    series: Sequence[Series], y_label: str, left: float, width: float
) -> tuple[list[str], float]:
    """The names of series behind the axis' label, or in lines under it; and the height of those."""
    widths = [44 + CHAR_WIDTH * len(one.name) for one in series]
    x, y = left + 24 + CHAR_WIDTH * 1.1 * len(y_label), 14.0
    if x + sum(widths) > width:
        x, y = 8.0, 14.0 + LEGEND_HEIGHT
    parts = []
    for one, own in zip(series, widths, strict=True):
        if x > 8 and x + own - 20 > width:
            x, y = 8.0, y + LEGEND_HEIGHT
        if one.is_points:
            parts.append(element("circle", class_=f"dot {one.style}", cx=x + 9, cy=y - 4, r=3))
        else:
            style = f"line {one.style}"
            parts.append(element("line", class_=style, x1=x, x2=x + 18, y1=y - 4, y2=y - 4))
        parts.append(element("text", one.name, class_="label", x=x + 24, y=y))
        x += own
    return parts, y - 14


def _draw_line(one: Series, x: Axis, y: Axis) -> str:
    path, pen = [], "M"
    for index, value in enumerate(one.values):
        if math.isnan(value):
            pen = "M"
            continue
        # The line of no length is a dot where both neighbours are missing
        dot = "h0" if pen == "M" else ""
        path.append(f"{pen}{x.pixel(index):.1f} {y.pixel(value):.1f}{dot}")
        pen = "L"
    return element("path", class_=f"line {one.style}", d=" ".join(path))


def _draw_points(one: Series, x: Axis, y: Axis, names: Sequence[str]) -> list[str]:
    parts = []
    for index, value in enumerate(one.values):
        if math.isnan(value):
            continue
        name = f"{names[index]}: " if names else ""
        title = f"{name}{format_number(value)}"
        cx, cy = x.pixel(index), y.pixel(value)
        style = f"dot {one.style}"
        parts.append(element("circle", title=title, class_=style, r=2.5, cx=cx, cy=cy))
    return parts


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's default."""
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _signed(value: float) -> str:
    return "0" if value == 0 else ("+" if value > 0 else "") + format_number(value)
