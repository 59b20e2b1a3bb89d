"""Tables for any width: what is in them is all there, and what belongs together stays together."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from vlmedge.runtime.terminal.line_breaks import break_lines, elide_middle
from vlmedge.runtime.terminal.tables import Column, lay_out

LAYER = "model.layers.0.self_attn.q_proj+k_proj+v_proj"
COLUMNS = (
    Column("layer"),
    Column("own SQNR dB", is_figure=True),
    Column("embeds without it", is_figure=True),
    Column("where"),
    Column("gate", is_verdict=True),
)
ROWS = [
    (LAYER, "21.5", "19.225 %", "receipts/0001, 56x112", "FAILED"),
    ("lm_head", "200.0", "", "", "ok"),
]


def draw(width, columns=COLUMNS, rows=ROWS):
    return [line.text for line in lay_out(columns, rows, width)]


def test_a_table_that_fits_has_a_line_a_row_and_its_columns_apart():
    lines = draw(None)
    assert lines[0] == lines[-1] == ""
    assert re.split(r" {3,}", lines[1].strip()) == [
        "layer", "own SQNR dB", "embeds without it", "where", "gate"
    ]  # fmt: skip
    assert set(lines[2].strip()) == {"─"}
    assert lines[3].split() == [
        LAYER, "21.5", "19.225", "%", "receipts/0001,", "56x112", "FAILED"
    ]  # fmt: skip
    assert len(lines) == 6


def test_figures_are_aligned_right():
    lines = draw(None)
    assert lines[3].index("21.5") + 4 == lines[4].index("200.0") + 5


@pytest.mark.parametrize("width", range(30, 140))
def test_no_line_is_wider_than_the_terminal_and_no_figure_or_word_is_broken(width):
    lines = draw(width)
    assert max(map(cell_len, lines)) <= width
    words = " ".join(lines).split()
    for whole in ("21.5", "200.0", "19.225", "FAILED", "ok", "56x112", "lm_head", "q_proj+"):
        assert whole in words or any(word.startswith(whole) or whole in word for word in words)


@pytest.mark.parametrize("width", [48, 60, 80])
def test_a_split_table_repeats_the_name_and_has_the_verdict_in_its_first_part(width):
    many = (*COLUMNS[:-1], *(Column(f"figure {n}", is_figure=True) for n in range(9)), COLUMNS[-1])
    rows = [(*row[:-1], *(f"{n}.25" for n in range(9)), row[-1]) for row in ROWS]
    parts = "\n".join(draw(width, many, rows)).strip("\n").split("\n\n")
    assert len(parts) > 1
    for part in parts:
        assert "lm_head" in part
    assert "FAILED" in parts[0]
    assert "FAILED" not in "".join(parts[1:])
    assert all(f"{n}.25" in "".join(parts) for n in range(9))


def test_a_table_without_heads_has_no_rule():
    lines = draw(None, (Column(""), Column("")), [("a", "b")])
    assert lines == ["", " a   b", ""]


def test_wide_characters_take_two_cells():
    lines = draw(None, (Column(""), Column("")), [("漢字", "x"), ("ab", "x")])
    assert cell_len(lines[1]) == cell_len(lines[2])


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("a sentence of words", 10, ["a sentence", "of words"]),
        (LAYER, 24, ["model.layers.0.", "self_attn.q_proj+k_proj+", "v_proj"]),
        ("see runs/mine/fp32/report", 12, ["see", "runs/mine/", "fp32/report"]),
        ("qwen2-vl-tiny-receipts", 12, ["qwen2-vl-", "tiny-", "receipts"]),
        ("image_embeds.cosine_min", 13, ["image_embeds.", "cosine_min"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("  kept as it is ", 30, ["  kept as it is "]),
        ("1.25e-05 +0.12", 8, ["1.25e-05", "+0.12"]),
        ("", 5, [""]),
    ],
)
def test_lines_are_broken_at_blanks_and_names_at_their_joints(text, width, lines):
    assert break_lines(text, width) == lines


@given(
    st.text(st.characters(exclude_categories=["C", "Z", "M"]) | st.just(" ")), st.integers(2, 40)
)
def test_breaking_loses_no_letter_and_keeps_to_the_width(text, width):
    lines = break_lines(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(cell_len(line) <= width for line in lines)


@given(st.text(st.characters(exclude_categories=["C", "Z", "M"])), st.integers(1, 40))
def test_an_elided_name_keeps_its_beginning_and_end(text, width):
    shown = elide_middle(text, width)
    assert cell_len(shown) <= width
    head, _, tail = shown.partition("…")
    assert shown == text or (text.startswith(head) and text.endswith(tail))
