"""One writer at a time for each target, and nothing left behind."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from vlmedge.quant.files import target_lock
from vlmedge.quant.files.target_lock import locked_target, name_lock

HOLD = """
import sys
from pathlib import Path
from vlmedge.quant.files.target_lock import locked_target
with locked_target(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start a process that holds a target until its stdin is closed."""
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
        process.communicate()


def lock(target):
    with locked_target(target):
        pass


def test_who_comes_second_is_told_who_is_at_work(tmp_path, hold):
    process = hold(tmp_path / "q")
    with pytest.raises(ValueError, match="wait for it, or name another target") as error:
        lock(tmp_path / "q")
    for word in (f"pid {process.pid},", "since ", str(tmp_path / "q"), "another process (-c"):
        assert word in str(error.value)
    lock(tmp_path / "r")


def test_when_the_first_has_ended_nothing_is_left(tmp_path, hold):
    hold(tmp_path / "q").communicate("")
    assert os.listdir(tmp_path) == []
    lock(tmp_path / "q")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_one_left_is_taken_over(tmp_path, hold):
    process = hold(tmp_path / "q")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.listdir(tmp_path) == [".q.lock"]
    lock(tmp_path / "q")
    assert os.listdir(tmp_path) == []


def test_an_error_gives_it_back(tmp_path):
    def fail():
        with locked_target(tmp_path / "q"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []
    lock(tmp_path / "q")


def test_the_steps_of_a_command_may_lock_it_again_and_other_threads_may_not(tmp_path):
    errors = []

    def try_it():
        try:
            lock(tmp_path / "q")
        except ValueError as error:
            errors.append(str(error))

    with locked_target(tmp_path / "q"):
        lock(tmp_path / "q")
        assert os.listdir(tmp_path) == [".q.lock"]
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(errors) == 1
    try_it()
    assert len(errors) == 1


def test_another_way_to_name_it_is_the_same_target(tmp_path, hold, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    hold(tmp_path / "folder" / "q")
    with pytest.raises(ValueError, match="another process"):
        lock(tmp_path / "link" / "q")
    monkeypatch.chdir(tmp_path / "folder")
    for name in ("q", "./q", "../folder/q"):
        with pytest.raises(ValueError, match="another process"):
            lock(target_lock.Path(name))


def test_a_lock_that_is_removed_while_it_is_waited_for_is_made_again(tmp_path, monkeypatch):
    take, taken = target_lock.take_lock, []

    def lose_and_take(file, place, *, wait):
        if not taken:
            name_lock(tmp_path / "q").unlink()  # as its holder does at the end
        taken.append(file)
        return take(file, place, wait=wait)

    monkeypatch.setattr(target_lock, "take_lock", lose_and_take)
    with locked_target(tmp_path / "q"):
        assert os.listdir(tmp_path) == [".q.lock"]
    assert len(taken) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\udcff"])
def test_a_holder_that_does_not_say_who_it_is_is_another_process(tmp_path, hold, content):
    hold(tmp_path / "q")
    name_lock(tmp_path / "q").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"^another process writes"):
        lock(tmp_path / "q")


def test_what_is_in_a_lock_can_not_spoil_the_line(tmp_path, hold):
    hold(tmp_path / "q")
    bad = '{"command": "\\u001b[2J\\nx", "pid": 1, "host": "h", "since": "now"}'
    name_lock(tmp_path / "q").write_text(bad)
    with pytest.raises(ValueError, match="another process") as error:
        lock(tmp_path / "q")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, code):
    def fail(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(target_lock.fcntl, "flock", fail)
    with pytest.raises(OSError, match=r"has no locks .*name a target on another one") as error:
        lock(tmp_path / "q")
    assert error.value.errno == code
    assert error.value.filename == str(tmp_path / "q")


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="make it first"):
        lock(tmp_path / "no" / "q")
