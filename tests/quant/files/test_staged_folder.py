"""At any moment the old folder, the new one, or none is there; never half of one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlmedge.quant.files import locked_folder
from vlmedge.quant.files import staged_folder as bundle
from vlmedge.quant.files.staged_folder import (
    check_free_space,
    remove_stale,
    replaced_folder,
    staged_folder,
)

HOLD = """
import sys
from pathlib import Path
from vlmedge.quant.files.staged_folder import staged_folder
with staged_folder(Path(sys.argv[1])) as folder:
    (folder / "manifest.json").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def make_manifest(text):
    """What tells a bundle of ours, whatever its version."""
    files = {"only-in-the-old": {"bytes": 0, "sha256": "0" * 64}}
    facts = {"schema_version": 1, "created_by": "vlmedge 0.0.1", "family": "qwen2_vl"}
    return json.dumps({**facts, "files": files, "text": text})


def read_text(target):
    return json.loads((target / "manifest.json").read_text())["text"]


@pytest.fixture
def old(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text(make_manifest("old"))
    (target / "only-in-the-old").touch()
    return target


def write(target, text="new"):
    with staged_folder(target) as folder:
        (folder / "manifest.json").write_text(make_manifest(text))


@pytest.fixture
def hold():
    """Start an export that waits half-way; killed at the end of the test."""
    started = []

    def start(target):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_new_folder_appears_whole_and_alone(tmp_path):
    target = tmp_path / "bundle"
    write(target)
    assert os.listdir(tmp_path) == ["bundle"]
    assert os.listdir(target) == ["manifest.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("exchange", [True, False])
def test_an_old_bundle_is_replaced_as_a_whole(old, monkeypatch, exchange):
    if not exchange:  # a system without the call
        monkeypatch.setattr(bundle, "_exchange", lambda first, second: False)
    write(old)
    assert os.listdir(old) == ["manifest.json"]
    assert read_text(old) == "new"
    assert os.listdir(old.parent) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_half_way_leaves_the_old_bundle_and_nothing_else(old, error):
    def fail():
        with staged_folder(old) as folder:
            (folder / "manifest.json").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert read_text(old) == "old"
    assert os.listdir(old.parent) == ["bundle"]


def test_a_killed_export_leaves_the_old_bundle_and_the_next_one_cleans_up(old, hold):
    process = hold(old)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_text(old) == "old"
    names = sorted(os.listdir(old.parent))
    assert [name[:16] for name in names] == [".bundle.lock", ".bundle.partial-", "bundle"]
    write(old)
    assert read_text(old) == "new"
    assert os.listdir(old.parent) == ["bundle"]


def test_an_export_at_work_is_not_taken_for_a_stale_one(tmp_path, hold):
    target = tmp_path / "bundle"
    hold(target)
    assert remove_stale(target) == []
    with replaced_folder(target) as folder:
        (folder / "manifest.json").write_text(make_manifest("new"))
    assert read_text(target) == "new"
    assert any(name.startswith(".bundle.partial-") for name in os.listdir(tmp_path))


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("call", ["_sync", "_swap"])
def test_a_finished_export_is_not_taken_for_a_stale_one_before_it_has_its_name(
    old, monkeypatch, exchange, call
):
    """Another export may begin between the last write and the swap."""
    if not exchange:
        monkeypatch.setattr(bundle, "_exchange", lambda first, second: False)
    original, removed = getattr(bundle, call), []

    def begin_another(*args):
        removed.append(remove_stale(old))
        original(*args)

    monkeypatch.setattr(bundle, call, begin_another)
    write(old)
    assert removed[0] == []  # later ones may be the old bundle
    assert read_text(old) == "new"
    assert os.listdir(old) == ["manifest.json"]


def test_the_old_bundle_is_not_taken_for_a_stale_one_while_it_is_aside(old, monkeypatch):
    monkeypatch.setattr(bundle, "_exchange", lambda first, second: False)
    rename = Path.rename

    def refuse(path, target):
        if path.name.startswith(".bundle.partial-"):
            remove_stale(old)
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write(old)
    assert sorted(os.listdir(old)) == ["manifest.json", "only-in-the-old"]
    assert os.listdir(old.parent) == ["bundle"]


def test_a_folder_that_another_export_removed_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch
):
    make, made = locked_folder.tempfile.mkdtemp, []

    def make_and_lose(**arguments):
        made.append(Path(make(**arguments)))
        if len(made) == 1:
            assert remove_stale(tmp_path / "bundle") == made
        return str(made[-1])

    monkeypatch.setattr(locked_folder.tempfile, "mkdtemp", make_and_lose)
    write(tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_that_another_export_removed_while_it_was_locked_is_made_again(
    tmp_path, monkeypatch
):
    lock, locked = locked_folder.take_lock, []

    def lose_and_lock(file, place):
        if not locked:
            locked.append(file)
            assert len(remove_stale(tmp_path / "bundle")) == 1
        return lock(file, place)

    monkeypatch.setattr(locked_folder, "take_lock", lose_and_lock)
    write(tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize("exchange", [True, False])
def test_of_many_exports_to_one_target_each_ends_and_one_stays(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(bundle, "_exchange", lambda first, second: False)
    target = tmp_path / "bundle"
    texts = [str(i) for i in range(48)]

    def export(text):
        with replaced_folder(target) as folder:
            (folder / "manifest.json").write_text(text)
        return text

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(export, texts)) == texts
    assert (target / "manifest.json").read_text() in texts
    assert os.listdir(target) == ["manifest.json"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_only_leftovers_of_the_same_target_are_removed(tmp_path):
    names = [".bundle.partial-abc", ".bundle2.partial-abc", "bundle.partial-abc", ".bundle"]
    for name in names:
        (tmp_path / name).mkdir()
    assert [path.name for path in remove_stale(tmp_path / "bundle")] == [".bundle.partial-abc"]
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_a_name_with_glob_characters_cleans_only_its_own(tmp_path):
    (tmp_path / ".[ab].partial-x").mkdir()
    (tmp_path / ".a.partial-x").mkdir()
    assert [path.name for path in remove_stale(tmp_path / "[ab]")] == [".[ab].partial-x"]


def test_readers_see_only_whole_folders_while_it_is_replaced(old):
    """The swap is one system call: a reader that opens the manifest never finds none."""
    write(old, "new 0")
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nwhile True:\n    open(sys.argv[1]).read()",
            str(old / "manifest.json"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.2)
        for i in range(20):
            write(old, f"new {i}")
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


def test_a_missing_parent_is_said(tmp_path):
    with pytest.raises(ValueError, match="is no directory: make it first"):
        write(tmp_path / "no" / "bundle")


def test_too_little_space_says_what_is_needed_and_free(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    check_free_space(tmp_path / "bundle", 9 * 10**8)
    with pytest.raises(OSError, match=r"needs 3\.02 GB on the disk, 1\.00 GB are free"):
        check_free_space(tmp_path / "bundle", 3 * 10**9)
