"""The report's section of layers."""

import math
import xml.etree.ElementTree as ET

import pytest

from vlmedge.quant.compare.findings import LayerFinding
from vlmedge.quant.report.layers import layer_sections, short_kind, sort_buckets, split_layer


def test_buckets_go_by_size_pictures_first():
    buckets = {"1092x1092", "clip 84x84x2", "448x448", "text", "84x84", "clip 56x56x2"}
    assert sort_buckets(buckets) == [
        "84x84",
        "448x448",
        "1092x1092",
        "clip 56x56x2",
        "clip 84x84x2",
        "text",
    ]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("visual.blocks.3.mlp.fc2", ("visual.blocks", 3, "mlp.fc2")),
        (
            "model.layers.27.self_attn.q_proj+k_proj+v_proj",
            ("model.layers", 27, "self_attn.q_proj+k_proj+v_proj"),
        ),
        ("visual.merger.mlp.0", None),
        ("lm_head", None),
    ],
)
def test_layers_are_told_from_their_blocks(name, parts):
    assert split_layer(name) == parts


def test_kinds_are_shortened_where_they_stay_different():
    kinds = ["self_attn.o_proj", "mlp.proj", "attn.proj"]
    assert [short_kind(kind, kinds) for kind in kinds] == ["o_proj", "mlp.proj", "attn.proj"]


def test_every_layer_and_size_is_a_cell_of_one_map(broken_check):
    (section,) = layer_sections(broken_check.layers)
    maps = [item.svg for item in section.items if item.kind == "figure"][1:]
    titles = [
        title.text for svg in maps for title in ET.fromstring(svg).iter() if "title" in title.tag
    ]
    assert len(titles) == len(set(titles)) == len(broken_check.layers)
    assert [item.caption.partition(":")[0] for item in section.items if item.kind == "figure"][
        1:
    ] == [
        "visual.blocks",
        "model.layers",
        "The other layers",
    ]


def test_layers_that_stand_out_come_first(broken_check, good_check):
    (section,) = layer_sections(broken_check.layers)
    assert [row[0].text for row in section.items[0].rows] == [
        "visual.blocks.3.mlp.fc2",
        "visual.blocks.5.mlp.fc2",
    ]
    assert (
        "2 are unusual for their precision: their formats do not explain the error."
        in section.texts
    )
    (section,) = layer_sections(good_check.layers)
    assert section.items[0].kind == "figure"
    assert "None is unusual for its precision." in section.texts


def test_the_table_has_each_layer_once_in_its_worst_size(broken_check):
    (section,) = layer_sections(broken_check.layers)
    table = section.items[-1]
    own = {row[0].text: row[2].text for row in table.rows}
    assert len(own) == len(table.rows) == len({f.layer for f in broken_check.layers})
    worst = min(f.own_sqnr_db for f in broken_check.layers if f.layer == "lm_head")
    assert own["lm_head"] == f"{worst:.1f}"


def test_equal_and_broken_numbers_are_drawn_too():
    layers = (
        LayerFinding("visual.blocks.0.a", "float32", "x", 200.0, 200.0),
        LayerFinding("lm_head", "int8", "text", math.nan, -math.inf),
    )
    (section,) = layer_sections(layers)
    assert any("above 90 dB" in text for text in section.texts)
    assert [cell.text for cell in section.items[-1].rows[1]][2:] == ["NaN", "\u2212∞"]


def test_without_layers_there_is_no_section():
    assert layer_sections(()) == []
