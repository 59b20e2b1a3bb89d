"""The folder a check leaves behind."""

import dataclasses
import errno
import json
import os
import re
import stat
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from vlmedge.quant.compare.findings import (
    CheckResult,
    EmbeddingFinding,
    SettingFinding,
    TaskFinding,
)
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.report import folder as report
from vlmedge.quant.report.folder import render_report, write_report, write_texts
from vlmedge.quant.report.page import Section
from vlmedge.quant.report.result_json import read_result

SAME = (SettingFinding("tokens.eos", "[2]", "[2]"),)
GATE = parse_gate("[layers]\nown_sqnr_db_min = 15\n[image_embeds]\ncosine_min = 0.999")
NAMES = {"report.html", "report.json", "junit.xml"}


def test_a_failed_check_leaves_three_files_that_agree(broken_check, tmp_path):
    folder = tmp_path / "new" / "report"
    write_report(folder, broken_check, judge(broken_check, GATE))
    assert {path.name for path in folder.iterdir()} == NAMES
    html = (folder / "report.html").read_text(encoding="utf-8")
    top = html[: html.index("<nav")]
    assert "May not ship: 2 of 3 limits fail" in top
    assert "visual.blocks.3.mlp.fc2 (int8 static, " in top
    assert json.loads((folder / "report.json").read_text())["passed"] is False
    assert ET.parse(folder / "junit.xml").getroot().get("failures") == "2"
    assert read_result(folder / "report.json") == broken_check


def test_all_levels_have_their_section(broken_check):
    html = render_report(broken_check, judge(broken_check, GATE), extra=[Section("more", "More")])
    assert re.findall(r'<section id="([\w-]+)">', html) == [
        "gate",
        "settings",
        "tasks",
        "layers",
        "sizes",
        "logits",
        "speed",
        "examples",
        "more",
        "environment",
    ]


def test_a_check_of_one_level_has_a_page_too():
    embeddings = (EmbeddingFinding("image_embeds", "a", "448x448", 1.0, 200.0, 0.0, 0.0),)
    html = render_report(CheckResult("a", "b", "c", "d", 1, {}, embeddings=embeddings))
    assert re.findall(r'<section id="([\w-]+)">', html) == ["sizes"]
    assert "No gate was given" in html


def test_a_report_of_full_size_stays_small(make_check):
    picture = Image.effect_noise((700, 500), 60).convert("RGB")  # the worst there is for JPEG
    result = make_check(32, 28, 100)
    html = render_report(result, judge(result, GATE), pictures=lambda _: [picture])
    assert 30 < html.count("data:image/jpeg") <= 40
    assert len(html) < 2.5e6


def test_names_with_markup_stay_text(tmp_path):
    evil = "<script>alert(1)</script>"
    tasks = (TaskFinding(evil, evil, 1, 90, 10, -90, -70, 0.8, 0, 0.64),)
    result = CheckResult(evil, evil, evil, evil, 1, {evil: evil}, settings=SAME, tasks=tasks)
    result = dataclasses.replace(result, environment={evil: evil})
    write_report(tmp_path, result, judge(result, parse_gate("[tasks]\nworst_loss_max = 1")))
    assert "<script" not in (tmp_path / "report.html").read_text()
    ET.parse(tmp_path / "junit.xml")


def test_answers_no_file_can_hold_do_not_cost_the_report(good_check, tmp_path):
    text = dataclasses.replace(good_check.texts[0], got="\ud83d\x00 half a character")
    result = dataclasses.replace(good_check, texts=(text,))
    write_report(tmp_path, result)
    assert read_result(tmp_path / "report.json") == result
    assert "half a character" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_leaves_the_old_files_and_no_others(tmp_path, monkeypatch):
    write_texts(tmp_path, {"a": "old", "b": "old"})
    calls = []

    def fail(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_texts(tmp_path, {"a": "new", "b": "new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}
    monkeypatch.undo()
    write_texts(tmp_path, {"a": "new", "b": "new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_files_have_the_rights_of_any_new_file(tmp_path):
    write_texts(tmp_path, {"a": "x"})
    other = tmp_path / "b"
    other.touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_file_in_the_place_of_the_folder_is_an_error(good_check, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="exists"):
        write_report(tmp_path / "out", good_check)
    assert (tmp_path / "out").read_text() == "mine"


def test_template_and_style_are_beside_the_code():
    folder = Path(report.__file__).parent
    assert (folder / "page.html.jinja").is_file()
    assert (folder / "page.css").is_file()
