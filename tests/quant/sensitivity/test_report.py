"""A sensitivity as a table, as JSON and as a page."""

import json
from xml.etree import ElementTree

import pytest

from vlmedge.quant.sensitivity.damage import ALL, Damage
from vlmedge.quant.sensitivity.measure import Sensitivity
from vlmedge.quant.sensitivity.report import (
    format_json,
    print_sensitivity,
    render_sensitivity,
    sensitivity_section,
)
from vlmedge.quant.sensitivity.rows import RowFolder, SensitivityRow

BUCKETS = ("4-7 tokens", "clip 4-7 tokens", ALL)


def make_row(layer, harm):
    is_vision = layer.startswith("visual.")
    damages = {
        bucket: Damage(harm * is_vision, 1.0 * is_vision, harm, 4.0, harm / 10, 2)
        for bucket in BUCKETS
    }
    part = "vision" if is_vision else "decoder"
    return SensitivityRow(layer, part, "int8", 30.25, damages, damages)


@pytest.fixture
def result():
    rows = [make_row("visual.blocks.0.<fc1>", 1e-4), make_row("lm_head", 4e-4)]
    rows += [make_row(f"visual.blocks.{i}.mlp.fc2", 1e-6 * i) for i in range(1, 40)]
    return Sensitivity(
        "reader",
        "orin",
        "data.jsonl",
        "ab" * 32,
        60,
        16,
        "fast",
        BUCKETS,
        rows[0].alone,
        tuple(rows),
    )


def test_json_has_every_layer_the_worst_first(result):
    content = json.loads(format_json(result))
    names = [layer["layer"] for layer in content["layers"]]
    assert names[:2] == ["lm_head", "visual.blocks.0.<fc1>"]
    assert len(content["layers"]) == 41
    second = content["layers"][1]
    assert second["alone"][ALL] == {
        "embeds_rel_l2": pytest.approx(0.01),
        "embeds_sqnr_db": pytest.approx(40),
        "logits_rel_l2": pytest.approx(0.005),
        "logits_kl_nats": pytest.approx(5e-6),
        "num_positions": 2,
    }
    assert content["layers"][0]["alone"][ALL]["embeds_rel_l2"] is None
    assert content["mode"] == "fast"
    assert (content["num_examples"], content["num_measured"]) == (60, 16)


def test_the_terminal_s_table_names_the_worst_and_counts_the_rest(result, capsys):
    print_sensitivity(result)
    out = capsys.readouterr().out
    assert out.index("lm_head") < out.index("visual.blocks.0.<fc1>") < out.index("blocks.39.")
    assert "visual.blocks.1.mlp.fc2" not in out
    assert "and 11 less harmful ones" in out
    assert "1.000 %" in out
    assert "16 of 60 examples of data.jsonl" in out


def test_the_page_draws_layers_by_picture_size(result):
    figures = [item for item in sensitivity_section(result).items if item.kind == "figure"]

    def texts(measure):
        roots = [ElementTree.fromstring(f.svg) for f in figures if measure in f.caption]
        nodes = [node for root in roots for node in root.iter()]
        return " | ".join(node.text for node in nodes if node.tag.endswith(("text", "title")))

    assert "lm_head" not in texts("embeddings")  # it has no part in embeddings
    for words in ("lm_head", "visual.blocks.0.<fc1>", *BUCKETS):
        assert words in texts("KL of logits")
    page = render_sensitivity(result)
    assert "lm_head does most damage" in page
    assert "visual.blocks.0.&lt;fc1&gt;" in page
    assert "<fc1>" not in page


def test_a_decoder_s_recipe_has_no_map_of_embeddings(result):
    rows = (make_row("lm_head", 1e-4),)
    only = Sensitivity(
        "reader", "orin", "data.jsonl", "ab" * 32, 1, 1, "exact", BUCKETS, rows[0].alone, rows
    )
    figures = [item for item in sensitivity_section(only).items if item.kind == "figure"]
    assert len(figures) == 1
    assert "lm_head does most damage" in render_sensitivity(only)


def test_rows_are_kept_by_what_decides_them(tmp_path):
    rows = [make_row("lm_head", 1 / 3), make_row("visual.blocks.0.mlp.fc1", 1e-9)]
    folder = RowFolder(tmp_path / "rows", "recipe", "model")
    assert not folder.has("decoder.head")
    folder.save("decoder.head", rows)
    again = RowFolder(tmp_path / "rows", "recipe", "model")
    assert again.has("decoder.head")
    assert again.load("decoder.head") == rows
    assert not RowFolder(tmp_path / "rows", "recipe2", "model").has("decoder.head")
    assert not RowFolder(tmp_path / "rows", "recipem", "odel").has("decoder.head")
    again.remove()
    assert not list(tmp_path.iterdir())
