"""What is hashed is what is on the disk, however it was written."""

import errno
import hashlib
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.files import hashed_file
from vlmedge.quant.files.hashed_file import ALIGNMENT, PAGE_ALIGNMENT, HashedFile, align


def test_the_record_is_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hashed_file, "FLUSH_BYTES", 1000)  # flushed while it grows
    with HashedFile(tmp_path / "f") as file:
        file.write(b"head")
        file.pad_to(64)
        file.write(np.arange(1000, dtype=np.float32).reshape(10, 100))
        file.pad_to(64)  # behind it already
        file.write(np.float32(3).reshape(()))
    content = b"head" + bytes(60) + np.arange(1000, dtype="<f4").tobytes()
    content += np.float32(3).tobytes()
    assert (tmp_path / "f").read_bytes() == content
    assert file.record.bytes == len(content)
    assert file.record.sha256 == hashlib.sha256(content).hexdigest()


def test_an_empty_file_has_a_record_too(tmp_path):
    with HashedFile(tmp_path / "f") as file:
        pass
    assert (file.record.bytes, file.record.sha256) == (0, hashlib.sha256(b"").hexdigest())


def test_an_old_file_is_never_written_over(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "old"


def test_an_error_inside_ends_its_threads_and_comes_out(tmp_path):
    file = HashedFile(tmp_path / "f")

    def fail():
        with file:
            file.write(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not file._thread.is_alive()
    assert file._file.closed


def test_a_failed_flush_is_told(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "failing disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="failing disk"), HashedFile(tmp_path / "f") as file:
        file.write(b"x")
    assert file._file.closed


def test_a_failed_flush_on_the_way_is_told_at_the_end(tmp_path, monkeypatch):
    # The kernel reports a failed write once: to whoever asked then.
    def fail(descriptor):
        raise OSError(errno.EIO, "failing disk")

    monkeypatch.setattr(hashed_file, "FLUSH_BYTES", 10)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="failing disk"), HashedFile(tmp_path / "f") as file:
        file.write(bytes(100))


def test_a_full_disk_is_told(tmp_path):
    # A limit on a file's size is a disk that ends; set in a process of its own.
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from vlmedge.quant.files import hashed_file\n"
        "try:\n"
        "    with hashed_file.HashedFile(Path(sys.argv[1])) as file:\n"
        "        for _ in range(100): file.write(np.zeros(10000, np.uint8))\n"
        "except OSError as error: print('told', error.errno)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert run.stdout == f"told {errno.EFBIG}\n", run.stderr


@settings(deadline=None)
@given(st.integers(0, 1 << 40), st.integers(0, 1 << 30))
def test_tensors_begin_on_cache_lines_and_large_ones_on_pages(position, nbytes):
    start = align(position, nbytes)
    unit = PAGE_ALIGNMENT if nbytes >= PAGE_ALIGNMENT else ALIGNMENT
    assert start % unit == 0
    assert position <= start < position + unit
