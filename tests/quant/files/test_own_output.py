"""Files of vlmedge's are replaced, edited ones and those of others not, special files never."""

import io
import json
import os
import tarfile

import pytest

from vlmedge.quant.files.own_output import (
    KINDS,
    check_output,
    check_outputs,
    is_signed,
    sign_text,
)
from vlmedge.quant.quantize.calibration import Calibration, write_calibration
from vlmedge.quant.recipe.toml import format_recipe, open_recipe, parse_recipe
from vlmedge.quant.report.folder import REPORT_FILES, write_report
from vlmedge.quant.report.page import Headline, render_page

FOREIGN = [b"", b"thesis", b"\xff\x00", b"{}", b"[]", b"<html></html>", b"[" * 100_000, b"1\n\n\n"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_somebody_else_is_left_alone_unless_forced(tmp_path, kind, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"--force overwrites it, or name another") as error:
        check_output(path, kind)
    assert str(error.value).startswith(f"{path} is there and is no ")
    check_output(path, kind, force=True)
    assert path.read_bytes() == content  # nothing is written yet


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_name_is_fine(tmp_path, kind):
    check_output(tmp_path / "new", kind)
    assert os.listdir(tmp_path) == []


def test_a_check_knows_its_own_reports_and_no_other_kind(tmp_path, good_check):
    write_report(tmp_path, good_check)
    for name, kind in REPORT_FILES.items():
        check_output(tmp_path / name, kind)
        for other in set(KINDS) - {kind}:
            with pytest.raises(ValueError, match="--force"):
                check_output(tmp_path / name, other)


def test_a_page_of_an_older_version_is_known_by_its_footer(tmp_path):
    page = render_page("t", Headline("pass", "b", "t"), [])
    line = next(line for line in page.splitlines() if 'name="generator"' in line)
    (tmp_path / "old.html").write_text(page.replace(line, ""))
    check_output(tmp_path / "old.html", "page")


def test_a_calibration_is_known(tmp_path):
    write_calibration(tmp_path / "c.json", Calibration("m", "d", "0" * 64, 1))
    check_output(tmp_path / "c.json", "calibration")


def test_a_recipe_is_known_until_it_is_edited(tmp_path):
    text = sign_text(format_recipe(open_recipe("orin")))
    path = tmp_path / "mine.toml"
    path.write_text(text)
    check_output(path, "recipe")
    assert parse_recipe(text, "written") == open_recipe("orin")
    for edited in (text.replace("gptq", "awq", 1), f"{text}# mine\n", f"# mine\n{text}", text[:-1]):
        path.write_text(edited)
        with pytest.raises(ValueError, match="no recipe as vlmedge wrote it: --force"):
            check_output(path, "recipe")


@pytest.mark.parametrize("text", ["", "\n", "a\nb\n"])
def test_what_is_signed_is_known_as_signed(text):
    assert is_signed(sign_text(text).encode())
    assert not is_signed(text.encode())


def test_a_tar_is_known_by_the_script_in_front(tmp_path):
    path = tmp_path / "a.tar"
    for script, is_ours in ((sign_text("#!/bin/bash\n"), True), ("#!/bin/bash\n", False)):
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("a.sh")
            info.size = len(script)
            tar.addfile(info, io.BytesIO(script.encode()))
        if is_ours:
            check_output(path, "archive")
        else:
            with pytest.raises(ValueError, match="no tar as vlmedge wrote it"):
                check_output(path, "archive")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", ["link", "dangling link", "pipe", "folder", "device"])
def test_what_is_no_plain_file_is_left_alone_even_by_force(tmp_path, make, force):
    path = tmp_path / "odd"
    (tmp_path / "there").write_text(sign_text(""))
    {
        "link": lambda: path.symlink_to(tmp_path / "there"),
        "dangling link": lambda: path.symlink_to(tmp_path / "nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: None,
    }[make]()
    path = type(path)("/dev/null") if make == "device" else path
    with pytest.raises(ValueError, match="is no plain file: it is left alone"):
        check_output(path, "recipe", force=force)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="make it first"):
        check_output(tmp_path / "no" / "x", "recipe")


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_written_into_a_bundle_or_over_what_is_read(tmp_path, force):
    bundle, data = tmp_path / "bundle", tmp_path / "data.jsonl"
    bundle.mkdir()
    data.write_text(json.dumps({}))
    apart = {"apart_from": ("owner/model", bundle, data), "force": force}
    with pytest.raises(ValueError, match=r"lies in .*bundle, what is read"):
        check_output(bundle / "x", "recipe", **apart)
    with pytest.raises(ValueError, match="is what is read"):
        check_output(data, "calibration", **apart)
    for folder in (bundle, bundle / "report", bundle / "a" / "b"):
        with pytest.raises(ValueError, match="lies in"):
            check_outputs(folder, REPORT_FILES, **apart)
    assert os.listdir(bundle) == []
    check_output(tmp_path / "x", "recipe", **apart)
    check_outputs(tmp_path, REPORT_FILES, **apart)  # beside the bundle


def test_one_file_of_somebody_else_is_enough_to_stop(tmp_path, good_check):
    write_report(tmp_path, good_check)
    (tmp_path / "junit.xml").write_text("<testsuites name='pytest'/>")
    with pytest.raises(ValueError, match=r"junit\.xml is there and is no report of vlmedge's"):
        check_outputs(tmp_path, REPORT_FILES)
    check_outputs(tmp_path, REPORT_FILES, force=True)


@pytest.mark.parametrize("kind", ["a file", "a pipe", "a device"])
def test_what_is_no_folder_is_named(tmp_path, kind):
    folder = tmp_path / "report"
    if kind == "a file":
        folder.write_text("")
    elif kind == "a pipe":
        os.mkfifo(folder)
    else:
        folder.symlink_to(os.devnull)
    with pytest.raises(ValueError, match=f"report is {kind}, needed a folder"):
        check_outputs(folder, REPORT_FILES)


def test_a_folder_is_made_with_those_around_it(tmp_path):
    check_outputs(tmp_path / "deep" / "report", REPORT_FILES)
    assert (tmp_path / "deep" / "report").is_dir()


def test_a_file_is_no_folder_for_reports(tmp_path):
    (tmp_path / "report").write_text("thesis")
    (tmp_path / "nowhere").symlink_to("missing")
    for name in ("report", "nowhere"):
        with pytest.raises(ValueError, match=f"{name} is (a file, needed a|no) folder"):
            check_outputs(tmp_path / name, REPORT_FILES)
    assert (tmp_path / "report").read_text() == "thesis"
