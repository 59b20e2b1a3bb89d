"""Reports of a check whose every name and text is hostile: pages stay pages, XML stays XML."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from vlmedge.quant.cli.diff import write_plot
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.report.folder import write_report
from vlmedge.quant.report.heat_map import heat_map
from vlmedge.quant.report.page import Section
from vlmedge.quant.report.plots import interval_plot
from vlmedge.quant.report.result_json import read_result
from vlmedge.runtime.bundle.manifest import CoverageEntry

GATE = parse_gate(
    "[layers]\nown_sqnr_db_min = 15\n[image_embeds]\ncosine_min = 0.999\n"
    "[tasks]\nworst_loss_max = 1\n"
)
PLAIN = "plain"
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Fields whose words are ours: a level of a gate, a kind of figure
OURS = {"level", "what", "unit", "metric"}


class Outline(HTMLParser):
    """Tags and names of attributes in order, links, styles but for their numbers, and all text."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.styles, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.styles += [value for name, value in attrs if name == "style"]

    def handle_endtag(self, tag):
        self.tags.append(("/", tag))

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_pi(self, data):
        raise AssertionError(f"a processing instruction: {data}")

    def unknown_decl(self, data):
        raise AssertionError(f"a section: {data}")

    def handle_data(self, data):
        self.text.append(data)


def outline(path):
    reader = Outline()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


def put_in(value, word, name=""):
    """A copy of findings with `word` in every string that isn't ours; keys stay different."""
    if isinstance(value, str):
        return value if name in OURS else f"{value}{word}"
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        changes = {f.name: put_in(getattr(value, f.name), word, f.name) for f in fields}
        return dataclasses.replace(value, **changes)
    if isinstance(value, tuple):
        return tuple(put_in(item, word, name) for item in value)
    if isinstance(value, dict):
        return {f"{key}{word}": put_in(item, word) for key, item in value.items()}
    return value


def write(folder, check, word):
    result = put_in(check, word)
    result = dataclasses.replace(result, skipped={word: word}, environment={word: word})
    coverage = (CoverageEntry(word, "linear", word, word, word),)
    extra = (Section("more", word, (word,)),)
    write_report(folder, result, judge(result, GATE), coverage=coverage, extra=extra)
    return result


def test_no_text_of_a_report_becomes_markup(broken_check, hostile, tmp_path):
    write(tmp_path / "plain", broken_check, PLAIN)
    result = write(tmp_path / "hostile", broken_check, hostile)
    plain = outline(tmp_path / "plain" / "report.html")
    page = outline(tmp_path / "hostile" / "report.html")
    # How many marks and labels there are depends on lengths and words: which there are does not
    assert set(page.tags) <= set(plain.tags)
    assert page.links == plain.links
    # A drawing is as wide as its words; nothing else is styled in its place
    assert all(re.fullmatch(r"min-width:\d+px", style) for style in page.styles)
    assert read_result(tmp_path / "hostile" / "report.json") == result
    json.loads((tmp_path / "hostile" / "report.json").read_text(encoding="utf-8"))


def test_junit_stays_xml_1_0_and_of_the_same_shape(broken_check, hostile, tmp_path):
    write(tmp_path / "plain", broken_check, PLAIN)
    write(tmp_path / "hostile", broken_check, hostile)
    shapes = []
    for name in ("plain", "hostile"):
        data = (tmp_path / name / "junit.xml").read_bytes()
        assert not re.search(
            "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", data.decode()
        )
        root = ET.fromstring(data)
        shapes.append([(element.tag, sorted(element.attrib)) for element in root.iter()])
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda word: heat_map([word], [word], [[1.0]], word, label=word),
        lambda word: interval_plot([(word, -1.0, 0.0, 1.0, "bad")], unit=word, label=word),
    ],
    ids=["heat map", "intervals"],
)
def test_drawings_are_xml_and_of_the_same_elements(draw, hostile):
    if hostile == "x\ud800y":
        hostile = "x"  # no file can hold it: write_texts writes \ud800
    plain, drawn = ET.fromstring(draw(PLAIN)), ET.fromstring(draw(hostile))
    names = [{(e.tag, *sorted(e.attrib)) for e in root.iter()} for root in (drawn, plain)]
    assert names[0] <= names[1]


def test_a_plot_of_diff_is_a_page_as_well(broken_check, hostile, tmp_path):
    layers = put_in(broken_check, PLAIN).layers, put_in(broken_check, hostile).layers
    for name, findings, word in (("p", layers[0], PLAIN), ("h", layers[1], hostile)):
        write_plot(tmp_path / f"{name}.html", findings, findings[0], word)
    assert set(outline(tmp_path / "h.html").tags) <= set(outline(tmp_path / "p.html").tags)
