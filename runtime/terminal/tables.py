"""Lay out a table for a width: nothing is cut, names break at joints, figures don't break.

A table that is too wide for its terminal first loses the blanks between columns, then has its texts
broken, and at last is written in several parts below each other, as pandas does. Each part begins
with the first column, which holds the name; the first part has the column of the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from .line_breaks import break_lines, measure_pieces

# Names and other texts are broken into lines no narrower than these; then the table is split
LEAST_NAME_CELLS, LEAST_TEXT_CELLS = 24, 12


@dataclass(frozen=True, slots=True)
class Column:
    """A column's head and the kind of its cells.

    Attributes:
        head: "" for cells that explain themselves.
        is_figure: cells are aligned right and never broken.
        is_verdict: the column matters most: it is in the first part of a split table.
    """

    head: str
    is_figure: bool = False
    is_verdict: bool = False


@dataclass(frozen=True, slots=True)
class TableLine:
    """One line of a table; `is_head` for those above the rule."""

    text: str
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class _Spacing:
    edge: int
    gap: int

    def measure(self, widths: Sequence[int]) -> int:
        return sum(widths) + self.gap * (len(widths) - 1) + 2 * self.edge


_WIDE, _TIGHT = _Spacing(edge=1, gap=3), _Spacing(edge=0, gap=2)


def lay_out(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    width: int | None,
    *,
    rule: str = "─",
) -> list[TableLine]:
    """A table as lines of at most `width` cells, with an empty line before and after each part.

    Args:
        columns: if none of them has a head, the table has no line of heads.
        rows: cells, as many as columns, without line breaks.
        width: width of the terminal; None: as wide as the table needs.
        rule: the character of the line below the heads.
    """
    table = _Table(columns, [list(row) for row in rows])
    everything = range(len(columns))
    natural = [table.measure(index) for index in everything]
    if width is None or _WIDE.measure(natural) <= width:
        return table.draw(everything, natural, _WIDE, rule)
    lines: list[TableLine] = []
    for part in table.split(width):
        drawn = table.draw(part, table.fit(part, width), _TIGHT, rule)
        lines += drawn[1:] if lines else drawn
    return lines


class _Table:
    """The cells of each column, and how wide each column has to be."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        self._columns, self._rows = columns, rows
        self._cells = [[row[index] for row in rows] for index in range(len(columns))]

    def measure(self, index: int) -> int:
        """Width of a column in terminal cells, with no line broken."""
        return max(map(cell_len, [self._columns[index].head, *self._cells[index]]))

    def measure_least(self, index: int) -> int:
        """Least width at which no figure, word of a head or part of a name is broken."""
        column, cells = self._columns[index], self._cells[index]
        head = measure_pieces(column.head)
        if column.is_figure:
            return max([head, *map(cell_len, cells)])
        longest = max([head, *map(measure_pieces, cells)])
        floor = LEAST_TEXT_CELLS if index else LEAST_NAME_CELLS
        return max(longest, min(self.measure(index), floor))

    def split(self, width: int) -> list[list[int]]:
        """Columns of each part, in as few parts as possible."""
        # However long a name is, half of the width is for the other columns
        least = [self.measure_least(index) for index in range(len(self._columns))]
        least = [min(cells, max(1, width // 2)) for cells in least[:1]] + least[1:]
        verdicts = [i for i, column in enumerate(self._columns) if i and column.is_verdict]
        waiting = [i for i in range(1, len(least)) if i not in verdicts]
        part, parts = [0, *verdicts], []
        for index in waiting:
            if _TIGHT.measure([least[i] for i in (*part, index)]) > width and len(part) > 1:
                parts.append(sorted(part))
                part = [0]
            part.append(index)
        return [*parts, sorted(part)]

    def fit(self, part: Sequence[int], width: int) -> list[int]:
        """Widths of a part's columns that break as few lines as possible, the widest text first."""
        widths = [self.measure(index) for index in part]
        least = [self.measure_least(index) for index in part]
        # Heads of figures are broken first, then texts, at last names longer than half of the width
        for floor, indices in (
            (least, [i for i, index in enumerate(part) if self._columns[index].is_figure]),
            (least, [i for i, index in enumerate(part) if not self._columns[index].is_figure]),
            ([1] * len(part), list(range(len(part)))),
        ):
            while _TIGHT.measure(widths) > width:
                open_ones = [i for i in indices if widths[i] > floor[i]]
                if not open_ones:
                    break
                widths[max(open_ones, key=lambda i: widths[i])] -= 1
        return widths

    def draw(
        self, part: Sequence[int], widths: Sequence[int], spacing: _Spacing, rule: str
    ) -> list[TableLine]:
        """The lines of one part's columns."""
        lines = [TableLine("")]
        heads = [self._columns[index].head for index in part]
        if any(heads):
            lines += [
                TableLine(text, is_head=True)
                for text in self._draw_row(part, heads, widths, spacing, at_bottom=True)
            ]
            edge = " " * spacing.edge
            length = spacing.measure(widths) - 2 * spacing.edge
            lines.append(TableLine(f"{edge}{rule * length}{edge}"))
        for row in self._rows:
            cells = [row[index] for index in part]
            lines += [TableLine(text) for text in self._draw_row(part, cells, widths, spacing)]
        return [*lines, TableLine("")]

    def _draw_row(
        self,
        part: Sequence[int],
        cells: Sequence[str],
        widths: Sequence[int],
        spacing: _Spacing,
        *,
        at_bottom: bool = False,
    ) -> list[str]:
        broken = [break_lines(cell, width) for cell, width in zip(cells, widths, strict=True)]
        height = max(map(len, broken))
        if at_bottom:
            broken = [[""] * (height - len(lines)) + lines for lines in broken]
        drawn = []
        for number in range(height):
            aligned = []
            for index, lines, width in zip(part, broken, widths, strict=True):
                text = lines[number] if number < len(lines) else ""
                blanks = " " * (width - cell_len(text))
                aligned.append(blanks + text if self._columns[index].is_figure else text + blanks)
            edge = " " * spacing.edge
            drawn.append(f"{edge}{(' ' * spacing.gap).join(aligned)}".rstrip())
        return drawn
