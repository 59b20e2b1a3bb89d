"""A file is the old one or the new one, never half of one."""

import os
from pathlib import Path

import pytest

from vlmedge.quant.atomic import replaced_file, write_text
from vlmedge.quant.report import write_texts


def test_text_is_written_in_utf8_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "recipe.toml"
    write_text(path, "ß\n")
    assert path.read_bytes() == "ß\n".encode()
    assert os.listdir(tmp_path) == ["recipe.toml"]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "f"
    path.write_text("a long old text")
    write_text(path, "new")
    assert path.read_text() == "new"


def test_it_may_be_read_as_any_new_file_may(tmp_path):
    write_text(tmp_path / "f", "x")
    (tmp_path / "other").write_text("x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_half_way_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "f"
    path.write_text("old")

    def fail():
        with replaced_file(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_that_is_missing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "no" / "f", "x")


def test_a_name_alone_is_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(Path("f"), "x")
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, kind):
    """As root, a replaced /dev/null would be a file for everyone."""
    path = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(os.devnull)
    else:
        path.mkdir()
    before = path.lstat()
    with pytest.raises(OSError, match=f"it is a {kind}".replace("folder", "directory")):
        write_text(path, "new")
    with pytest.raises(OSError, match="only a regular file is replaced"):
        write_texts(tmp_path, {"other": "new", "target": "new"})
    assert path.lstat() == before
    assert sorted(tmp_path.iterdir()) == [path]
