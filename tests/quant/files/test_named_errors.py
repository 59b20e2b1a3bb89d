"""A full disk is told with the name of the file that did not fit, by every writer."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlmedge.quant.files.named_errors import naming

# In a process of its own whose files may have 1000 bytes: as a full disk, and without root
LIMITED = """
import json, resource, sys
from pathlib import Path
import numpy as np

def text(folder):
    from vlmedge.quant.files.atomic import write_text
    write_text(folder / "target.json", "x" * 5000)

def bundle_text(folder):
    from vlmedge.quant.files.staged_folder import write_text
    write_text(folder / "target.json", "x" * 5000)

def small(folder):
    from vlmedge.quant.files.hashed_file import write_small
    write_small(folder / "target.json", b"x" * 5000)

def hashed(folder):
    from vlmedge.quant.files.hashed_file import HashedFile
    with HashedFile(folder / "target.json") as file:
        file.write(np.zeros(50000, np.uint8))

def hashed_at_its_end(folder):
    from vlmedge.quant.files.hashed_file import HashedFile
    with HashedFile(folder / "target.json") as file:
        file.write(np.zeros(5000, np.uint8))  # less than Python's own buffer

def report(folder):
    from vlmedge.quant.report.folder import write_texts
    write_texts(folder, {"target.json": "x" * 5000})

def engine(folder):
    from vlmedge.export.engines.engine_folder import write_engine
    write_engine(folder / "target.json", b"x" * 5000)

def array(folder):
    from vlmedge.quant.quantize.work_folder import _save
    _save(folder / "target.json.npy", np.zeros(5000))

def shelf(folder):
    from vlmedge.quant.compare.shelf import ArrayShelf
    with ArrayShelf() as shelf:
        shelf.put("target.json", {"x": np.zeros(5000)})

def archive(folder):
    from vlmedge.quant.files.atomic import replaced_file
    import io, tarfile
    with replaced_file(folder / "target.json") as temporary, tarfile.open(temporary, "w") as tar:
        info = tarfile.TarInfo("a")
        info.size = 50000
        tar.addfile(info, io.BytesIO(bytes(50000)))

writers = [text, bundle_text, small, hashed, hashed_at_its_end, report, engine, array, shelf]
writers.append(archive)
root = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
outcome = {}
for writer in writers:
    folder = root / writer.__name__
    folder.mkdir()
    try:
        writer(folder)
        outcome[writer.__name__] = None
    except Exception as error:
        outcome[writer.__name__] = [type(error).__name__, str(error)]
print(json.dumps(outcome))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict[str, list[str]]:
    pytest.importorskip("resource", reason="this system has no limit of a file's size")
    root = tmp_path_factory.mktemp("limited")
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED, str(root)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"left behind": sorted(map(str, root.rglob("*.partial*")))}


@pytest.mark.parametrize(
    "writer",
    [
        "text",
        "bundle_text",
        "small",
        "hashed",
        "hashed_at_its_end",
        "report",
        "engine",
        "array",
        "archive",
    ],
)
def test_a_writer_that_fails_names_its_file(outcome, writer):
    kind, text = outcome[writer]
    assert kind == "OSError"
    assert f"{writer}/target.json" in text
    assert "File too large" in text or "disk may be full" in text


def test_the_shelf_of_arrays_says_how_to_have_more_room(outcome):
    kind, text = outcome["shelf"]
    assert kind == "OSError"
    assert "TMPDIR" in text
    assert "None" not in text


def test_nothing_half_written_is_left(outcome):
    assert outcome["left behind"] == []


def test_the_command_line_says_the_name_first(tmp_path, monkeypatch, capsys):
    """The whole way, where a disk can be made: a tiny one in memory, by root."""
    from vlmedge.runtime.cli import main as cli

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    try:
        bundle = Path(__file__).parents[3] / "samples" / "reader"
        monkeypatch.setattr("vlmedge.export.exporter.check_free_space", lambda *_: None)
        code = cli.main(["export", str(bundle), str(disk / "bundle")])
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert code == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert str(disk) in err


def test_an_error_that_has_a_name_keeps_it():
    with pytest.raises(FileNotFoundError) as caught, naming(Path("b")):
        raise FileNotFoundError(errno.ENOENT, "No such file", "a")
    assert caught.value.filename == "a"
    with pytest.raises(ValueError, match="other"), naming(Path("b")):
        raise ValueError("other")


def test_where_other_files_are_read_only_errors_of_writing_get_the_name():
    with pytest.raises(OSError, match="Input") as caught, naming(Path("b"), may_read=True):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.filename is None
    with pytest.raises(OSError, match="No space") as caught, naming(Path("b"), may_read=True):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == "b"
