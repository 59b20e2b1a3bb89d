"""The report on a phone, a tablet and a screen: legible text, visible verdicts, names on axes.

No browser here: sizes follow from each drawing's own numbers and the style sheet's rules. The pages
were looked at in one at 390, 820 and 1280 pixels.
"""

import re
from pathlib import Path

import pytest

from vlmedge.quant.files.grammar import agree, all_of, counted, everything, part_of
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.report import page
from vlmedge.quant.report.folder import render_report
from vlmedge.quant.report.heat_map import heat_map
from vlmedge.quant.report.layer_axis import split_layer
from vlmedge.quant.report.layers import layer_sections
from vlmedge.quant.report.svg import LEAST_TEXT_PX

CSS = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
# Width of the window -> that of a figure: less the paddings of main and section and two borders
WINDOWS = {390: 390 - 2 * 10 - 2 * 16 - 2, 820: 820 - 2 * 20 - 2 * 26 - 2, 1280: 906}
NARROW_FROM = int(re.search(r"\(max-width: (\d+)px\) {\s*\.on-wide", CSS)[1])
FONT_PX = min(float(px) for px in re.findall(r"\.(?:label|cell) { font: (\d+)px", CSS))
# Of a letter, as a share of its font's size: less than it is in any font that pages are shown with
LEAST_LETTER = 0.4
GATE = """
image_embeds.rel_l2_max = 0.01
logits.top1_min = 0.0
layers.own_sqnr_db_min = 20
"""


@pytest.fixture(scope="module")
def html(broken_check):
    return render_report(broken_check, judge(broken_check, parse_gate(GATE)))


def list_drawings(html, window):
    """(width, least width, text) of each drawing that a window shows."""
    hidden = "on-wide" if window <= NARROW_FROM else "on-narrow"
    shown = re.sub(rf'<div class="{hidden}">.*?</svg></div>', "", html, flags=re.DOTALL)
    head = r'<svg class="plot"[^>]*viewBox="0 0 (\d+) \d+"[^>]*min-width:(\d+)px[^>]*>'
    found = re.findall(rf"{head}(.*?)</svg>", shown, flags=re.DOTALL)
    assert len(found) == shown.count("<svg ")
    return [(int(width), int(least), text) for width, least, text in found]


@pytest.mark.parametrize("window", WINDOWS)
def test_text_of_every_chart_is_at_least_ten_pixels_at_any_width(html, window):
    drawings = list_drawings(html, window)
    assert len(drawings) > 8
    for width, least, _ in drawings:
        scale = max(min(WINDOWS[window], width), least) / width
        assert scale * FONT_PX >= LEAST_TEXT_PX


@pytest.mark.parametrize("window", WINDOWS)
def test_no_chart_has_to_be_scrolled(html, window):
    for _, least, text in list_drawings(html, window):
        assert least <= WINDOWS[window], text[:120]


def test_no_text_of_a_chart_is_cut_at_its_right_edge(html):
    for window in WINDOWS:
        for width, _, text in list_drawings(html, window):
            for attributes, words in re.findall(r"<text ([^>]*)>([^<]*)</text>", text):
                if "rotate" in attributes or "end" in attributes.split('"')[1].split():
                    continue
                x = float(re.search(r' x="([\d.-]+)"', f" {attributes}")[1])
                half = 2 if "mid" in attributes or "cell" in attributes else 1
                assert x + LEAST_LETTER * 12 * len(words) / half <= width, words


def test_the_legend_of_a_heat_map_is_whole_with_any_unit():
    for unit in ("", "dB", "a unit of many words in a row"):
        svg = heat_map(["a"], ["b"], [[123456.0]], unit, width=100)
        width = float(re.search(r'viewBox="0 0 (\d+)', svg)[1])
        *_, (x, words) = re.findall(r'<text class="label" x="([\d.]+)" y="[\d.]+">([^<]*)<', svg)
        assert words.endswith(unit)
        assert float(x) + 0.5 * 12 * len(words) <= width


def test_verdicts_are_told_on_a_phone_beside_their_limits(html):
    """A row is a block there: the verdict stands in its first line, other cells have a heading."""
    narrow = CSS[CSS.index("@media screen and (max-width: 700px)") :]
    for rule in (
        "tr { display: flex",
        "td.ok, td.bad:not(.num), td.open, td.verdict { order: -1",
        "content: attr(data-label)",
    ):
        assert rule in narrow
    limits = re.search(r'<section id="gate">(.*?)</section>', html, re.DOTALL)[1]
    rows = re.findall(r"<tr><td(.*?)</tr>", limits, re.DOTALL)
    assert rows
    for row in rows:
        assert re.search(r'<td class="(ok|bad)">(holds|fails)</td>', row)
        assert 'data-label="measured"' in row
        assert 'data-label="needed"' in row
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html


def test_layers_have_their_names_on_the_axis(broken_check):
    layers = broken_check.layers
    (section,) = layer_sections(layers)
    growth = next(item for item in section.items if item.kind == "figure")
    names = list(dict.fromkeys(finding.layer for finding in layers))
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", growth.svg)
    assert set(names) <= set(labels)
    at = {name: labels.index(name) for name in names}
    assert sorted(names, key=at.__getitem__) == names


@pytest.mark.parametrize("drawing", ["svg", "narrow"])
def test_where_names_have_no_room_blocks_and_stacks_are_named(make_check, drawing):
    layers = make_check().layers  # of the 2B: 32 blocks, 28 layers
    (section,) = layer_sections(layers)
    growth = next(item for item in section.items if item.kind == "figure")
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", getattr(growth, drawing))
    splits = [split for finding in layers if (split := split_layer(finding.layer))]
    assert {stack for stack, _, _ in splits} <= set(labels)
    assert len({str(block) for _, block, _ in splits} & set(labels)) >= 3


def test_heat_maps_are_a_panel_for_each_kind_with_rows_and_columns_named(broken_check):
    layers = broken_check.layers
    (section,) = layer_sections(layers)
    maps = [item.svg for item in section.items if item.kind == "figure" and "panels" in item.svg]
    splits = {finding.layer: split_layer(finding.layer) for finding in layers}
    kinds = {(split[0], split[2]) for split in splits.values() if split}
    assert sum(text.count("<svg ") - 1 for text in maps) == len(kinds)
    for text in maps:
        assert text.count("≤ 0 dB") == 1  # one legend for all panels of a figure
        for bucket in {finding.bucket for finding in layers if splits[finding.layer]}:
            assert f">{bucket}</text>" in text


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        (counted(1, "example"), "1 example"),
        (counted(2, "example"), "2 examples"),
        (counted(0, "example"), "0 examples"),
        (part_of(1, 8, "limit", "fails", "fail"), "1 of 8 limits fails"),
        (part_of(2, 8, "limit", "fails", "fail"), "2 of 8 limits fail"),
        (part_of(1, 1, "limit", "fails", "fail"), "1 of 1 limit fails"),
        (all_of(8, "limit", "holds", "hold"), "all 8 limits hold"),
        (all_of(1, "limit", "holds", "hold"), "the one limit holds"),
        (everything(1, "layer"), "The one layer"),
        (everything(3, "layer"), "All 3 layers"),
        (agree(1, "stands", "stand"), "stands"),
    ],
)
def test_words_agree_with_numbers(text, needed):
    assert text == needed


def test_no_page_says_1_of_something_in_the_plural(html):
    text = re.sub(r"<svg.*?</svg>|<style>.*?</style>", " ", html, flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    nouns = "examples|layers|limits|answers|parts|pictures"
    wrong = re.findall(rf"(?<!of )(?<![\w.,x:/-])1 (?:{nouns})\b", text)
    assert not wrong
    assert not re.search(r"\b1 (?:stand|differ|fail|part)\b", text)
