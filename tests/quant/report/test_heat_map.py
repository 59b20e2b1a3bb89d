"""Heat maps: a cell a value, deeper where it is worse."""

import math
import xml.etree.ElementTree as ET

import pytest

from vlmedge.quant.report.heat_map import NUM_SHADES, heat_map

SVG = "{http://www.w3.org/2000/svg}"


def read_cells(svg):
    """What shows under the pointer -> shade; the legend's strip has no title."""
    cells = {}
    for rect in ET.fromstring(svg).iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None:
            cells[title.text] = int(rect.get("class").removeprefix("heat-"))
    return cells


def texts(svg):
    return [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(("better", "good", "bad"), [("higher", 40.0, 7.0), ("lower", 7.0, 40.0)])
def test_the_worst_cell_is_the_deepest(better, good, bad):
    svg = heat_map(["a", "b"], ["x", "y"], [[good, bad], [20.0, None]], "dB", better=better)
    cells = read_cells(svg)
    assert len(cells) == 3  # nothing is drawn where nothing was measured
    assert cells[f"a x: {good:.0f} dB"] == 0
    assert cells[f"a y: {bad:.0f} dB"] == NUM_SHADES - 1
    assert 0 < cells["b x: 20 dB"] < NUM_SHADES - 1


def test_not_a_number_is_the_deepest_and_does_not_stretch_the_scale():
    cells = read_cells(heat_map(["a"], ["x", "y", "z"], [[1.0, 2.0, math.nan]], ""))
    assert cells == {"a x: 1": 0, "a y: 2": NUM_SHADES - 1, "a z: NaN": NUM_SHADES - 1}


def test_a_log_scale_shades_by_ratio():
    values = [[1e-6, 1e-3, 1.0]]
    middle = "a y: 0.001 nats"
    assert read_cells(heat_map(["a"], ["x", "y", "z"], values, "nats"))[middle] == 0
    logs = read_cells(heat_map(["a"], ["x", "y", "z"], values, "nats", is_log=True))
    assert logs[middle] == NUM_SHADES // 2
    assert list(read_cells(heat_map(["a"], ["x"], [[0.0]], "", is_log=True)).values()) == [0]


def test_a_given_scale_makes_maps_comparable():
    svg = heat_map(["a"], ["x", "y"], [[21.0, 99.0]], "dB", better="higher", scale=(40, 0))
    assert read_cells(svg) == {"a x: 21 dB": 4, "a y: 99 dB": 0}
    assert {"≥ 40 dB", "≤ 0 dB"} <= set(texts(svg))


def test_equal_values_are_all_good():
    assert set(read_cells(heat_map(["a"], ["x", "y"], [[3.0, 3.0]], "")).values()) == {0}


def test_names_stand_at_rows_and_columns_and_numbers_in_wide_cells():
    svg = heat_map(["row <1>"], ["column &"], [[12.34]], "dB")
    assert {"row <1>", "column &", "12"} <= set(texts(svg))
    wide = heat_map(["r"], [f"c{i}" for i in range(60)], [[12.34] * 60], "dB")
    assert "12" not in texts(wide)


def test_the_last_column_is_whole_though_its_name_be_short():
    svg = ET.fromstring(heat_map(["a"], ["a long name"] * 6 + ["x"], [[1.0] * 7], ""))
    ends = [float(rect.get("x")) + float(rect.get("width")) for rect in svg.iter(f"{SVG}rect")]
    assert max(ends) <= float(svg.get("viewBox").split()[2])


def test_an_empty_map_is_still_a_picture():
    ET.fromstring(heat_map([], [], [], "dB"))
    ET.fromstring(heat_map(["a"], ["x"], [[None]], "dB"))


def test_a_map_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"1 rows and 2 columns, its values are \[1\] long"):
        heat_map(["a"], ["x", "y"], [[1.0]], "")
