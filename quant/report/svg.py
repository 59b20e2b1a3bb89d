"""Make the parts of a plot: SVG elements, nice ticks, scales.

Colours are classes that the report's style sheet sets, for light and dark; without it a plot is
black on white and still readable.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

TEXT_PX = 12.0  # of labels, in page.css
LEAST_TEXT_PX = (
    10.0  # a plot shrinks with the page until its text is as small as this, then scrolls
)
CHAR_WIDTH = 7.2  # pixels, of the labels' font
WIDTH, NARROW_WIDTH = 800.0, 330.0  # of plots on a screen and on a phone
MINUS = "\N{MINUS SIGN}"
_NO_XML_TABLE = {code: "\ufffd" for code in range(32) if code not in (9, 10, 13)}


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values laid on a range of pixels.

    Attributes:
        first, last: pixels of `low` and `high`; last < first for an axis that goes up.
        is_log: ten-fold steps of equal length; low above 0.
    """

    low: float
    high: float
    first: float
    last: float
    is_log: bool = False

    def pixel(self, value: float) -> float:
        """Where a value lies; one outside is put on the edge."""
        low, high, value = (
            (math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low)))
            if self.is_log
            else (self.low, self.high, value)
        )
        share = (value - low) / (high - low)
        return self.first + min(max(share, 0.0), 1.0) * (self.last - self.first)

    def ticks(self, count: int = 6) -> list[float]:
        """Values for labels: about `count` round ones, by a factor of 2 to 10 where it is_log."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.floor(math.log10(self.high))
            factors = (1, 2, 5) if last - first < 3 else (1,)
            values = [f * 10.0**power for power in range(first, last + 1) for f in factors]
            values = [value for value in values if self.low <= value <= self.high]
            if len(values) < 3 and self.high < 10 * self.low:  # powers of ten are too far apart
                return make_ticks(self.low, self.high, count)
            return values[:: max(1, len(values) // count)]
        return make_ticks(self.low, self.high, count)


def make_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def fit_range(values: Sequence[float], *, margin: float = 0.06) -> tuple[float, float]:
    """A range around the finite values with some air; of (0, 1) if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    air = (high - low) * margin or abs(high) * margin or 1.0
    return low - air, high + air


def format_number(value: float) -> str:
    """Three digits, as short as they get."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, _, power = f"{value:.1e}".partition("e")
        text = f"{digits.removesuffix('.0')}e{int(power)}"
    else:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", MINUS)


def fixed(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with so many digits behind the point, and a + if asked for."""
    if not math.isfinite(value):
        return format_number(value)
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return ("+" if sign and value > 0 else "") + text.replace("-", MINUS)


def escape(text: str) -> str:
    """Text for an element or an attribute, in HTML and in XML."""
    return html.escape(text.translate(_NO_XML_TABLE))


def element(tag: str, text: str = "", title: str = "", **attributes: float | str) -> str:
    """One element; `text` is escaped, `title` is what shows under the pointer.

    Attributes: `class_` is class, other underscores are hyphens.
    """
    parts = []
    for name, value in attributes.items():
        shown = escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
        parts.append(f' {name.rstrip("_").replace("_", "-")}="{shown}"')
    inner = f"<title>{escape(title)}</title>" if title else ""
    inner += escape(text)
    opened = f"<{tag}{''.join(parts)}"
    return f"{opened}>{inner}</{tag}>" if inner else f"{opened}/>"


def drawing(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """The whole SVG, which shrinks with the page as far as its text stays legible.

    Args:
        width: in pixels.
        height: in pixels.
        label: what the plot shows, for those who can't see it.
        parts: elements.
    """
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'style="min-width:{math.ceil(width * LEAST_TEXT_PX / TEXT_PX)}px" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
