"""The report's sections by picture size and by position."""

import re

from vlmedge.quant.compare.findings import EmbeddingFinding, LogitFinding
from vlmedge.quant.report.levels import logit_section, size_section


def test_sizes_are_rows_under_their_level_in_the_order_of_the_computation():
    embeddings = [
        EmbeddingFinding(level, "a", bucket, cosine, 30.0, 0.1, rel_l2)
        for level in ("image_embeds", "pixel_values")
        for bucket, cosine, rel_l2 in (("448x448", 0.9, 0.3), ("84x84", 0.99, 0.1))
    ]
    embeddings.append(EmbeddingFinding("image_embeds", "b", "448x448", 0.8, -3.0, 0.5, 0.5))
    (section,) = size_section(embeddings)
    table, *figures = section.items
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[:3] for row in rows] == [
        ["pixel values", "84x84", "1"],
        ["", "448x448", "1"],
        ["image embeddings", "84x84", "1"],
        ["", "448x448", "2"],
    ]
    assert rows[3][3:] == ["0.800000", "\u22123.0", "0.4", "0.5", "0.5"]
    assert len(figures) == 1  # pixel values are numbers enough


def test_positions_are_those_of_the_longest_answer():
    logits = [
        LogitFinding("a", (0.1, 0.2, 0.4), (1.0, 0.0, 1.0), (1.0,) * 3, 1),
        LogitFinding("b", (0.3,), (1.0,), (1.0,), None),
    ]
    (section,) = logit_section(logits)
    assert "In 1 of 2 examples the best token never differs" in section.texts[0]
    assert "the other parts at position 1." in section.texts[0]
    path = re.search(r'class="line got" d="([^"]*)"', section.items[0].svg)[1]
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    assert heights[0] == heights[1] > heights[2]  # means of 0.1 and 0.3, of 0.2, of 0.4
    assert "The last position is that of 1 example." in section.items[0].caption


def test_what_was_not_measured_has_no_section():
    assert size_section(()) == []
    assert logit_section(()) == []
    assert logit_section([LogitFinding("a", (), (), (), None)]) == []
