"""A file is the old one or the new one, never half of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmedge.quant.files import atomic
from vlmedge.quant.files.atomic import replaced_file, write_text
from vlmedge.quant.report.folder import write_texts


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


KILLED = """
import os, signal, sys
from pathlib import Path
from vlmedge.quant.files.atomic import replaced_file
with replaced_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    assert path.read_text() == "old"
    (tmp_path / ".g.partial-x").touch()  # of another file
    write_text(path, "new")
    assert sorted(os.listdir(tmp_path)) == [".g.partial-x", "f"]


def test_a_writer_at_work_is_not_taken_for_one_that_was_killed(tmp_path):
    path = tmp_path / "f"
    with replaced_file(path) as temporary:
        temporary.write_text("first")
        write_text(path, "second")
        assert temporary.read_text() == "first"
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["f"]


def test_a_temporary_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, locked = atomic.fcntl.flock, []

    def lose_and_lock(handle, how):
        if not locked:
            locked.append(handle)
            (lost,) = tmp_path.iterdir()
            lost.unlink()
        lock(handle, how)

    monkeypatch.setattr(atomic.fcntl, "flock", lose_and_lock)
    write_text(tmp_path / "f", "x")
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
