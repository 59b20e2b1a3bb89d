"""A script and its tar: older ones are replaced until they are edited; nothing else is."""

import shutil
import tarfile

import pytest

from vlmedge.export.engines.script import archive as script_archive
from vlmedge.export.engines.script.write import write_script
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.quant.files.own_output import is_signed
from vlmedge.runtime.bundle.manifest_file import read_manifest


@pytest.fixture
def bundle(lower, tmp_path):
    return shutil.copytree(lower("jetpack-6.2"), tmp_path / "bundle")


def write(bundle, name="build.sh", **options):
    settings = BuildSettings(max_pixels=16 * 784, prefill_tokens=16)
    script = bundle.parent / name
    return write_script(bundle, read_manifest(bundle), settings, script, **options)


def test_what_was_not_edited_is_replaced(bundle):
    first = write(bundle)
    before = first.script.read_bytes(), first.archive.read_bytes()
    assert is_signed(before[0])
    write(bundle)
    assert (first.script.read_bytes(), first.archive.read_bytes()) == before


def test_an_edited_script_is_left_alone_unless_forced(bundle):
    written = write(bundle)
    edited = written.script.read_text().replace("set -euo pipefail", "set -uo pipefail  # mine")
    written.script.write_text(edited)
    before = written.archive.read_bytes()
    with pytest.raises(ValueError, match=r"build\.sh is there and is no script as vlmedge wrote"):
        write(bundle)
    assert written.script.read_text() == edited
    assert written.archive.read_bytes() == before
    write(bundle, force=True)
    assert is_signed(written.script.read_bytes())


def test_another_tar_of_that_name_is_left_alone_and_no_script_is_written(bundle):
    archive = bundle.parent / "build.tar"
    (bundle.parent / "thesis.tex").write_text("years of work")
    with tarfile.open(archive, "w") as tar:
        tar.add(bundle.parent / "thesis.tex", "thesis.tex")
    before = archive.read_bytes()
    with pytest.raises(ValueError, match=r"build\.tar is there and is no tar as vlmedge wrote it"):
        write(bundle)
    assert archive.read_bytes() == before
    assert not (bundle.parent / "build.sh").exists()


def test_no_script_is_written_into_the_bundle(bundle):
    for name in ("bundle/build.sh", "bundle/engines.sh"):
        with pytest.raises(ValueError, match="lies in"):
            write(bundle, name, force=True)
    assert not list(bundle.glob("*.sh"))


def change_while_it_is_packed(bundle, monkeypatch):
    add = script_archive._add

    def change_and_add(tar, path, name, mode):
        if path.name == "tokenizer.json":
            (bundle / "decoder.onnx").touch()
        add(tar, path, name, mode)

    monkeypatch.setattr(script_archive, "_add", change_and_add)


def test_a_bundle_that_changes_while_it_is_packed_leaves_the_old_pair(bundle, monkeypatch):
    written = write(bundle)
    before = written.script.read_bytes(), written.archive.read_bytes()
    change_while_it_is_packed(bundle, monkeypatch)
    settings = BuildSettings(max_pixels=64 * 784, prefill_tokens=16)  # another script
    with pytest.raises(ValueError, match=r"decoder\.onnx changed while it was read"):
        write_script(bundle, read_manifest(bundle), settings, written.script)
    assert (written.script.read_bytes(), written.archive.read_bytes()) == before


def test_where_there_was_none_there_is_neither(bundle, monkeypatch):
    change_while_it_is_packed(bundle, monkeypatch)
    with pytest.raises(ValueError, match="nothing was written"):
        write(bundle)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_the_tar_holds_the_script_first_to_be_run(bundle):
    written = write(bundle)
    with tarfile.open(written.archive) as tar:
        first = tar.next()
        assert (first.name, first.mode) == ("build.sh", 0o755)
        assert tar.extractfile(first).read() == written.script.read_bytes()
