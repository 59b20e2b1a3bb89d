import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from vlmedge.quant.compare.shelf import ArrayShelf


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_arrays_come_back_as_they_were():
    arrays = {"x": np.arange(6).reshape(2, 3), "y": np.float16([1.5]), "empty": np.empty((0, 4))}
    with ArrayShelf() as shelf:
        shelf.put("model.layers.0.q_proj+k_proj.3", arrays)
        shelf.put("b", {"x": np.zeros(1)})
        got = shelf.read("model.layers.0.q_proj+k_proj.3")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_nothing_is_left_behind_also_after_an_error(tmp_path):
    with ArrayShelf() as shelf:
        shelf.put("a", {"x": np.ones(3)})
        shelf.put("b", {"x": np.ones(3)})
        shelf.remove("a")
        assert [path.name for path in tmp_path.rglob("*.npz")] == ["b.npz"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError), ArrayShelf() as shelf:
        shelf.read("a")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_folder_and_the_way_out(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    shelf = ArrayShelf()
    with pytest.raises(OSError, match=r"No space left on device.*TMPDIR") as raised:
        shelf.put("a", {"x": np.ones(3)})
    shelf.close()
    assert raised.value.errno == errno.ENOSPC
    assert str(tmp_path) in raised.value.filename


LEAVE = """
import sys
import numpy as np
from vlmedge.quant.compare.shelf import ArrayShelf
shelf = ArrayShelf()
shelf.put("a", {"x": np.ones(3)})
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def leave(tmp_path):
    """A process with a shelf in the temporary folder; killed at the end if not before."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


def test_what_a_killed_check_left_is_removed_by_the_next_and_a_running_ones_stays(tmp_path, leave):
    (running,) = tmp_path.iterdir()
    with ArrayShelf():
        assert (running / "a.npz").is_file()
    leave.send_signal(signal.SIGKILL)
    leave.wait()
    assert list(tmp_path.iterdir()) == [running]
    with ArrayShelf():
        assert not running.exists()
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_in_the_temporary_folder_stays(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "vlmedge-work-link").symlink_to(tmp_path / "data")
    (tmp_path / "vlmedge-work-file").touch()
    (tmp_path / "vlmedge-abcd").mkdir()  # of a version without locks
    names = sorted(path.name for path in tmp_path.iterdir())
    with ArrayShelf():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    (tmp_path / "vlmedge-work-other").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # another user's
    with ArrayShelf():
        assert (tmp_path / "vlmedge-work-other").is_dir()
