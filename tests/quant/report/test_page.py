"""Pages: one file, nothing from outside, everything escaped."""

import re
from html.parser import HTMLParser

from vlmedge.quant.report.page import (
    Answer,
    Card,
    Cards,
    Cell,
    Figure,
    Headline,
    Part,
    Section,
    Table,
    counted,
    num,
    render_page,
)
from vlmedge.quant.report.svg import drawing, element

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "\"><script>alert(1)</script><img src=x onerror=y> & '{{ 7 * 7 }}"


class Reader(HTMLParser):
    """Tags in balance, text, and the attributes that could load something."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(html):
    """Parse a page and refuse what is not self-contained."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "action", "data", "srcset"):
            assert value.startswith(("data:image/", "#")), (tag, name, value)
    assert not re.search(r"@import|url\(", html)
    return reader


def make_page(word, uri="data:image/png;base64,AAAA"):
    cell = Cell(word, "num", word)
    card = Card(
        word, word, "fail", word, (word,), (Answer(word, (Part(word, True),), word),), (uri,), word
    )
    svg = drawing(9, 9, word, [element("text", word, title=word)])
    return render_page(
        word,
        Headline("fail", word, word, ((word, word),), word, (word,), word),
        [
            Section(
                "a",
                word,
                (word,),
                (
                    Table((cell,), ((cell,),)),
                    Table((cell,), ((cell,),), word),
                    Figure(svg, word),
                    Cards((card,)),
                ),
            )
        ],
    )


def test_every_text_of_a_page_is_escaped():
    plain, evil = read_page(make_page("WORD")), read_page(make_page(EVIL))
    assert evil.tags == plain.tags
    places = "".join(plain.text).count("WORD")
    assert places >= 20
    assert "".join(evil.text).count(EVIL) == places


def test_a_page_holds_its_pictures_and_asks_for_nothing_else():
    html = make_page("x")
    assert 'src="data:image/png;base64,AAAA"' in html
    assert "default-src 'none'" in html
    assert re.findall(r"https?://[^\"']*", html) == ["http://www.w3.org/2000/svg"]


def test_a_zero_character_becomes_the_replacement_one():
    html = make_page("a\0b")
    assert "\0" not in html
    assert "a\ufffdb" in html


def test_an_answer_of_nothing_is_shown_as_such():
    answer = Answer("reference", ())
    card = Card("t", "tag", "none", "q", (), (answer,))
    html = render_page("t", Headline("none", "b", "h"), [Section("a", "s", (), (Cards((card,)),))])
    assert "<em>no answer</em>" in html
    assert "Accepted" not in html


def test_long_tables_are_folded_and_light_and_dark_are_known():
    html = make_page("x")
    assert html.count("<details>") == 1
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_counted_nouns_and_numbers():
    assert [counted(n, "example") for n in (0, 1, 2)] == ["0 examples", "1 example", "2 examples"]
    assert num("3") == Cell("3", "num")
    assert num("3", "bad").style == "num bad"


def test_names_in_a_headline_may_go_on_in_the_next_line_and_numbers_do_not():
    html = render_page("t", Headline("none", "b", "model.layers.2.k_proj+v_proj, 0.5 <x>"), [])
    told = "model.<wbr>layers.<wbr>2.<wbr>k_proj+<wbr>v_proj, 0.5 &lt;x&gt;</h1>"
    assert told in html
