"""Breaks text where a person would: at blanks, and names at their joints, not inside a word."""

from __future__ import annotations

import re

from rich.cells import cell_len, chop_cells

# A joint ends the piece before it: model.|layers.0.|self_attn.|q_proj+|k_proj, runs/|mine/|fp32
_PIECE = re.compile(r"(?:[^./+,:=@\\]|[./+,:=@\\](?=[\d./+,:=@\\]|$))+[./+,:=@\\]?|.", re.DOTALL)
# In a piece that is still too long: qwen2-|vl-|receipts, self_|attn
_PART = re.compile(r"(?:[^_-]|[_-](?![^\W\d_]))+[_-]?|.", re.DOTALL)


def split_pieces(word: str) -> list[str]:
    """The pieces of a word without blanks, each with the joint that ends it."""
    return _PIECE.findall(word)


def measure_pieces(text: str) -> int:
    """Terminal cells of the longest part of a name or a sentence that need not be broken."""
    parts = [part for word in text.split() for part in _split_finely(word)]
    return max(map(cell_len, parts), default=0)


def break_lines(text: str, width: int) -> list[str]:
    """Text as lines of at most `width` cells.

    A word that is wider than a line is broken at its joints, a piece that is still wider at hyphens
    and underscores, and a part that is even then wider wherever the line ends. Text that fits stays
    as it is, blanks included.
    """
    if cell_len(text) <= width:
        return [text]
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        if cell_len(word) > width:
            *full, line = _break_word(word, width)
            lines += full
    return [*lines, line]


def elide_middle(text: str, width: int) -> str:
    """Text of at most `width` cells; a longer text keeps its beginning and end, with … between."""
    if cell_len(text) <= width:
        return text
    tail = max(0, (width - 1) // 2)
    head = max(0, width - 1 - tail)
    return f"{_take(text, head)}…{_take(text[::-1], tail)[::-1]}"


def _break_word(word: str, width: int) -> list[str]:
    lines, line = [], ""
    pieces = split_pieces(word)
    if any(cell_len(piece) > width for piece in pieces):
        pieces = _split_finely(word)
    for piece in pieces:
        if cell_len(line + piece) <= width:
            line += piece
            continue
        if line:
            lines.append(line)
        *full, line = chop_cells(piece, width)
        lines += full
    return [*lines, line]


def _split_finely(word: str) -> list[str]:
    return [part for piece in split_pieces(word) for part in _PART.findall(piece)]


def _take(text: str, width: int) -> str:
    """The first characters, as many as fit."""
    return (chop_cells(text, width) or [""])[0] if width > 0 else ""
