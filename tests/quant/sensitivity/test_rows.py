"""Finished stages of a measurement on the disk: read back as they were, or told as damaged."""

import pytest

from vlmedge.quant.sensitivity.rows import RowFolder


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "{}x", '[{"layer": 1, "layer": 2}]', '[{"alone": {}, "rest": {}}]', "[[]]"],
)
def test_a_damaged_stage_is_one_line_that_says_what_to_remove(tmp_path, text):
    folder = RowFolder(tmp_path / "rows", "recipe", "model")
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "embed.json").write_text(text)
    with pytest.raises(ValueError, match="left by an interrupted run, is damaged") as caught:
        folder.load("embed")
    assert f"remove {folder.path}" in str(caught.value)
    assert "\n" not in str(caught.value)
