"""BUNDLE/engines/KEY: whole or as it was, whatever happens while it is written."""

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from vlmedge.export.engines.engine_folder import WRITE_BYTES, name_set, staged_set, write_engine
from vlmedge.quant.files import staged_folder


def test_a_set_is_named_by_gpu_builder_version_and_type():
    assert name_set("8.7", "tensorrt", "10.3.0", "bfloat16") == "sm87-tensorrt10.3.0-bfloat16"
    assert name_set("12.0", "tensorrt_rtx", "1.7", "float16") == "sm120-tensorrt_rtx1.7-float16"


def list_all(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write(bundle, text, name="key"):
    with staged_set(bundle, name) as folder:
        (folder / "engines.json").write_text(text)


def write_half(bundle, error):
    with staged_set(bundle, "key") as folder:
        (folder / "half.engine").write_text("half")
        raise error


def test_a_new_set_appears_whole_and_readable_by_others(tmp_path):
    with staged_set(tmp_path, "key") as folder:
        (folder / "a.engine").write_text("1")
        assert not (tmp_path / "engines" / "key").exists()
    assert list_all(tmp_path) == ["engines", "engines/key", "engines/key/a.engine"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "engines" / "key").stat().st_mode) == 0o777 & ~mask


def test_an_old_set_is_replaced_and_others_stay(tmp_path):
    write(tmp_path, "old")
    write(tmp_path, "other", "other")
    with staged_set(tmp_path, "key") as folder:
        (folder / "new.engine").write_text("new")
        assert (tmp_path / "engines/key/engines.json").read_text() == "old"
    assert list_all(tmp_path / "engines") == [
        "key",
        "key/new.engine",
        "other",
        "other/engines.json",
    ]


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), KeyboardInterrupt()])
def test_a_failed_build_leaves_the_old_set(tmp_path, error):
    write(tmp_path, "old")
    with pytest.raises(type(error)):
        write_half(tmp_path, error)
    assert list_all(tmp_path / "engines") == ["key", "key/engines.json"]


def test_an_old_set_comes_back_when_the_new_one_can_not_take_its_place(tmp_path, monkeypatch):
    write(tmp_path, "old")
    rename = Path.rename

    def refuse(path, target):
        if path.name.startswith(".key.partial-"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(staged_folder, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path, "new")
    assert (tmp_path / "engines/key/engines.json").read_text() == "old"
    assert list_all(tmp_path / "engines") == ["key", "key/engines.json"]


def test_a_failed_first_build_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        write_half(tmp_path, RuntimeError())
    assert list_all(tmp_path) == []


def test_what_a_killed_build_left_is_removed_and_a_running_one_is_not(tmp_path):
    dead = tmp_path / "engines" / ".key.partial-dead"
    dead.mkdir(parents=True)
    (dead / "decoder.engine").write_text("half")
    with staged_set(tmp_path, "key") as first:
        assert not dead.exists()
        write(tmp_path, "second")
        assert first.exists()
        (first / "engines.json").write_text("first")
    assert (tmp_path / "engines/key/engines.json").read_text() == "first"
    assert list_all(tmp_path / "engines") == ["key", "key/engines.json"]


def test_a_finished_set_is_not_taken_for_a_leftover_before_it_has_its_name(tmp_path, monkeypatch):
    """Another build of the same set may begin while this one is flushed to the disk."""
    flush = os.fsync
    begun = []

    def begin_another(descriptor):
        begun.append(staged_folder.remove_stale(tmp_path / "engines" / "key"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", begin_another)
    for text in ("first", "second"):
        write(tmp_path, text)
        assert (tmp_path / "engines/key/engines.json").read_text() == text
        assert begun[0] == []  # later ones may be the old set
        begun.clear()
    assert list_all(tmp_path / "engines") == ["key", "key/engines.json"]


@pytest.mark.parametrize("size", [1, 1000, WRITE_BYTES + 1])
def test_an_engine_is_written_with_its_own_hash(tmp_path, size):
    plan = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    record = write_engine(tmp_path / "a.engine", memoryview(plan))
    assert record.bytes == size
    assert record.sha256 == hashlib.sha256(plan.tobytes()).hexdigest()
    assert (tmp_path / "a.engine").read_bytes() == plan.tobytes()
