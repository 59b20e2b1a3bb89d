from random import Random

import pytest

pytest.importorskip("matplotlib")
from sample.examples import CHARS, DIAL_STEPS, TAGS, WAYS
from sample.pixels import round_side
from sample.spec import CELL_PX
from sample.tasks import SPLITS, TASKS, make_example, pick_shape

NUM_GROUPS = 60


def draw(task: str, group: int, split: str = "train"):
    return make_example(split, pick_shape(task, Random(group)), group, 0)


def glyph_text(example, tag: str) -> str:
    return "".join(g.char for g in example.glyphs[0] if g.tag == tag)


@pytest.mark.parametrize("task", TASKS)
def test_an_example_is_fixed_by_its_seed(task):
    for group in range(5):
        one, two = draw(task, group), draw(task, group)
        assert [f.tobytes() for f in one.frames] == [f.tobytes() for f in two.frames]
        assert (one.question, one.answer, one.glyphs) == (two.question, two.answer, two.glyphs)


@pytest.mark.parametrize("task", TASKS)
def test_every_glyph_lies_inside_the_picture(task):
    for group in range(NUM_GROUPS):
        example = draw(task, group)
        width, height = example.frames[0].size
        for glyph in (g for frame in example.glyphs for g in frame):
            left, top, right, bottom = glyph.box
            assert left >= 0, glyph
            assert top >= 0, glyph
            assert right <= width, glyph
            assert bottom <= height, glyph


@pytest.mark.parametrize("task", TASKS)
def test_smart_resize_takes_every_side_to_its_grid_and_some_sides_need_it(task):
    shapes = [pick_shape(task, Random(group)) for group in range(NUM_GROUPS)]
    resized = 0
    for group, shape in enumerate(shapes):
        width, height = make_example("train", shape, group, 0).frames[0].size
        assert (round_side(height), round_side(width)) == tuple(CELL_PX * n for n in shape.cells)
        resized += width % CELL_PX > 0 or height % CELL_PX > 0
    assert 0 < resized < NUM_GROUPS


@pytest.mark.parametrize("task", TASKS)
def test_splits_hold_different_pictures(task):
    shape = pick_shape(task, Random(0))
    drawn = {
        split: {
            make_example(split, shape, g, p).frames[0].tobytes() for g in range(5) for p in "01"
        }
        for split in SPLITS
    }
    assert not drawn["train"] & drawn["held-out"]
    assert not drawn["train"] & drawn["shown"]
    assert not drawn["held-out"] & drawn["shown"]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'test'"):
        make_example("test", pick_shape("dial", Random(0)), 0, 0)


@pytest.mark.parametrize("task", TASKS)
def test_every_glyph_has_a_class(task):
    for group in range(NUM_GROUPS):
        for glyph in (g for frame in draw(task, group).glyphs for g in frame):
            assert glyph.char in CHARS
            assert not glyph.tag or glyph.tag in TAGS


def test_the_number_answered_is_the_number_written():
    for group in range(NUM_GROUPS):
        example = draw("number", group)
        assert glyph_text(example, "") == example.answer


def test_the_price_tag_answers_its_name_or_its_price():
    for group in range(NUM_GROUPS):
        example = draw("price tag", group)
        name = "".join(g.char for g in example.glyphs[0] if g.tag)
        price = glyph_text(example, "").lstrip("$")
        assert example.answer == (
            name if "item" in example.question or "sold" in example.question else price
        )


def test_the_total_of_a_receipt_is_the_sum_of_its_rows():
    for group in range(NUM_GROUPS):
        example = draw("receipt", group)
        rows = {g.tag: "" for g in example.glyphs[0]}
        for glyph in example.glyphs[0]:
            rows[glyph.tag] += glyph.char
        prices = {tag: text.removeprefix(tag) for tag, text in rows.items()}
        total = float(prices.pop("TOTAL"))
        assert sum(map(float, prices.values())) == pytest.approx(total)
        if "total" in example.question:
            assert float(example.answer) == total
        else:
            asked = next(tag for tag in prices if tag in example.question)
            assert example.answer == prices[asked]


def test_the_bar_answered_is_highest_or_lowest():
    for group in range(NUM_GROUPS):
        example = draw("bars", group)
        low = "lowest" in example.question or "shortest" in example.question
        assert glyph_text(example, "lowest" if low else "highest") == example.answer


def test_the_dial_answers_its_needle_in_its_own_unit():
    seen = set()
    for group in range(4 * NUM_GROUPS):
        example = draw("dial", group)
        step = next(int(g.tag.split()[1]) for g in example.glyphs[0] if g.tag)
        unit = 10 if glyph_text(example, "").endswith("100") else 1
        assert int(example.answer) == step * unit
        seen.add((step, unit))
    assert len(seen) == 2 * (DIAL_STEPS + 1)


def test_the_digit_of_a_clip_goes_the_way_it_answers():
    for group in range(NUM_GROUPS):
        example = draw("clip", group)
        first = next(g for g in example.glyphs[0] if g.tag in WAYS)
        last = next(g for g in example.glyphs[-1] if g.tag in WAYS)
        dx, dy = (b - a for a, b in zip(first.center, last.center, strict=True))
        assert WAYS[first.tag] == ((dx > 0) - (dx < 0), (dy > 0) - (dy < 0))
        assert example.answer in (first.char, first.tag)
