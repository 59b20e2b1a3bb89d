import errno

import numpy as np
import pytest

from vlmedge.quant.shelf import ArrayShelf


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
