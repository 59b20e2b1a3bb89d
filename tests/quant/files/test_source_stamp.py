"""A file that changes while it is read is named, whatever the change leaves alike."""

import os
import subprocess
import sys

import pytest

from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.quant.files.source_stamp import read_stamped, stamp_files

# Prints the files of a checkpoint that are opened while it is prepared
LIST_OPENED = """
import os, sys
folder = os.path.realpath(sys.argv[1])
opened = set()
def note(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(args[0]))
        if os.path.dirname(path) == folder:
            opened.add(os.path.basename(path))
sys.addaudithook(note)
from vlmedge.export.exporter import prepare
prepare(folder)
print(*sorted(opened))
"""


@pytest.fixture
def files(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    return [tmp_path / name for name in "abc"]


def test_files_that_stay_are_fine(files):
    stamp = stamp_files(files)
    stamp.check()
    files[0].read_text()
    stamp.check()


def rewrite(path):
    """The same size at another time."""
    before = path.stat()
    path.write_text("x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace(path):
    """Another file of the same size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_text("x")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def grow(path):
    """The same time."""
    before = path.stat()
    path.write_text("longer")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewrite, "it was written to"),
        (replace, "it is another file"),
        (grow, "1 bytes before, 6 now"),
        (os.unlink, "it is gone"),
    ],
)
def test_each_kind_of_change_is_told(files, change, message):
    stamp = stamp_files(files)
    change(files[1])
    with pytest.raises(ValueError, match=r"nothing was written; run it again") as error:
        stamp.check()
    assert str(error.value).startswith(f"{files[1]} changed while it was read ({message})")


def test_a_file_that_was_not_there_must_not_appear(tmp_path):
    stamp = stamp_files([tmp_path / "chat_template.jinja"])
    stamp.check()
    (tmp_path / "chat_template.jinja").touch()
    with pytest.raises(ValueError, match="it was not there before"):
        stamp.check()


def test_of_two_stamps_the_first_look_counts(files):
    first = stamp_files(files[:2])
    grow(files[0])
    with pytest.raises(ValueError, match="changed while"):
        (first | stamp_files(files)).check()


def test_a_bundle_is_stamped_whole(make_bundle):
    bundle = make_bundle("tiny").bundle
    manifest, stamp = read_stamped(bundle)
    assert {path.name for path in stamp.facts} == {"manifest.json", *manifest.files}


def test_every_file_of_a_checkpoint_that_is_opened_is_stamped(make_bundle):
    checkpoint = make_bundle("tiny").checkpoint
    run = subprocess.run(
        [sys.executable, "-c", LIST_OPENED, str(checkpoint)],
        capture_output=True,
        text=True,
        check=True,
    )
    opened = set(run.stdout.split())
    assert opened >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert opened <= {path.name for path in open_checkpoint(checkpoint).stamp.facts}
