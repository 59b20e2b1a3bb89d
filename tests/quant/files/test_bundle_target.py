"""Only a bundle of ours is replaced, if nothing of somebody else is in it, and never a source."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from vlmedge.quant.files.bundle_target import check_apart, check_target
from vlmedge.quant.files.locked_folder import locked_folder
from vlmedge.quant.files.staged_folder import staged_folder

TEXT = b"{% for m in messages %}"


@pytest.fixture
def own(make_bundle, tmp_path):
    """A copy of a bundle to put things into."""
    return shutil.copytree(make_bundle("tiny").bundle, tmp_path / "own")


def write_old(folder, **changes):
    """The least that any version of ours has written."""
    folder.mkdir()
    (folder / "a.jinja").write_bytes(TEXT)
    (folder / "weights.data").write_bytes(b"old")
    files = {
        "a.jinja": {"bytes": len(TEXT), "sha256": hashlib.sha256(TEXT).hexdigest()},
        "weights.data": {"bytes": 3, "sha256": "0" * 64},
        "more/b.onnx": {"bytes": 1, "sha256": "0" * 64},
    }
    facts = {"schema_version": 1, "created_by": "vlmedge 0.0.1", "family": "qwen2_vl"}
    (folder / "manifest.json").write_text(json.dumps({**facts, "files": files, **changes}))
    return folder


def list_all(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("version", [1, 2, 3, 99])
def test_a_bundle_of_any_version_may_be_replaced(tmp_path, version):
    old = write_old(tmp_path / "old", schema_version=version, something="of later")
    found = check_target(old)
    assert found is not None
    assert set(found.sha256) == {"a.jinja", "weights.data", "more/b.onnx"}


def test_a_bundle_as_it_is_written_may_be_replaced(own):
    assert check_target(own)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_bundle_is_left_alone(tmp_path, kind):
    target = tmp_path / "mine"
    if kind == "file":
        target.touch()
    elif kind == "folder":
        target.mkdir()
        (target / "thesis.tex").touch()
    else:
        target.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="mine is"):
        check_target(target)


@pytest.mark.parametrize(
    "manifest",
    [
        b'{"manifest_version": 3}',  # a browser's extension
        b"[]",
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"schema_version": 2, "created_by": "vlmedge 1", "family": "qwen2_vl"}',
        b'{"schema_version": 2, "created_by": "npm 1", "family": "qwen2_vl", "files": {}}',
        b'{"schema_version": true, "created_by": "vlmedge 1", "family": "q", "files": {}}',
        b'{"schema_version": 2, "created_by": "vlmedge 1", "family": "q", "files": {"a": 1}}',
        b'{"schema_version": 2, "created_by": "vlmedge 1", "family": null, "files": {}}',
    ],
)
def test_a_manifest_that_is_not_ours_makes_no_bundle(tmp_path, manifest):
    target = tmp_path / "extension"
    target.mkdir()
    (target / "manifest.json").write_bytes(manifest)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not vlmedge's: it is left alone; name another target"):
        check_target(target)
    with pytest.raises(ValueError, match="left alone"), staged_folder(target):
        pass
    assert list_all(target) == ["manifest.json", "thesis.tex"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_a_manifest_that_is_no_file_makes_no_bundle_and_no_wait(tmp_path, kind):
    target = tmp_path / "odd"
    target.mkdir()
    path = target / "manifest.json"
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "dangling link": lambda: path.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    with pytest.raises(ValueError, match="left alone"):
        check_target(target)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["notes.txt"], "notes.txt;"),
        (["notes/a.txt", "notes/b.txt"], "notes/;"),
        (["more/c.txt"], "more/c.txt;"),
        ([".hidden"], ".hidden;"),
        (["engines.txt"], "engines.txt;"),
        ([f"n{i}" for i in range(7)], "n0, n1, n2, n3, n4 and 2 more;"),
    ],
)
def test_files_that_the_manifest_does_not_list_are_a_reason_to_stop(tmp_path, names, told):
    old = write_old(tmp_path / "old")
    for name in names:
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).touch()
    with pytest.raises(ValueError, match="would be lost") as error:
        check_target(old)
    assert f"would be lost: {told} move it away, or name another target" in str(error.value)


def test_a_file_of_somebody_that_appears_meanwhile_stops_it_as_well(own):
    before = (own / "manifest.json").read_bytes()

    def export():
        with staged_folder(own) as folder:
            (folder / "manifest.json").write_text("new")
            (own / "notes.txt").write_text("mine")

    with pytest.raises(ValueError, match=r"notes\.txt"):
        export()
    assert (own / "manifest.json").read_bytes() == before
    assert (own / "notes.txt").read_text() == "mine"
    assert os.listdir(own.parent) == ["own"]


def test_links_are_somebodys_unless_they_stand_for_a_listed_file(tmp_path):
    old = write_old(tmp_path / "old")
    (old / "weights.data").rename(tmp_path / "on another disk")
    (old / "weights.data").symlink_to(tmp_path / "on another disk")
    assert check_target(old)
    (old / "data").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="would be lost: data;"):
        check_target(old)


def test_engines_are_the_bundles(own):
    (own / "engines" / "sm87" / "deep").mkdir(parents=True)
    (own / "engines" / "sm87" / "deep" / "decoder.engine").touch()
    (own / "engines" / "sm87.timing").touch()
    (own / "engines" / ".sm89.partial-x").mkdir()
    found = check_target(own)
    assert found is not None
    assert found.engine_sets == ("sm87",)


def test_a_bundle_in_which_engines_are_being_built_is_not_replaced(own):
    engines = own / "engines"
    engines.mkdir()
    refused = pytest.raises(ValueError, match=r"engines are being built in .*: wait")
    with locked_folder(engines, ".sm87.partial-"), refused:
        check_target(own)
    (engines / ".sm87.partial-killed").mkdir()
    (engines / ".sm87.partial-killed" / ".lock").touch()
    assert check_target(own)


def test_a_text_that_was_edited_is_not_lost(own):
    (own / "chat_template.jinja").write_text("my own")
    with pytest.raises(ValueError, match=r"changed after .*lost: chat_template\.jinja; move it"):
        check_target(own)
    (own / "chat_template.jinja").unlink()  # it was moved away
    assert check_target(own)


def test_a_damaged_bundle_may_be_replaced(own):
    (own / "decoder.onnx.data").write_bytes(b"cut short")
    (own / "vision.onnx").unlink()
    assert check_target(own)


@pytest.mark.parametrize("place", [".", "engines"])
def test_a_bundle_is_not_replaced_under_who_stands_in_it(own, monkeypatch, place):
    (own / "engines").mkdir()
    monkeypatch.chdir(own / place)
    for name in (os.path.relpath(own), own):
        with pytest.raises(ValueError, match="is the folder that this command runs in"):
            check_target(Path(name))


def test_nor_is_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^\. is the folder that this command runs in"):
        check_target(Path())


def test_an_empty_folder_and_none_are_fine_targets(tmp_path):
    (tmp_path / "empty").mkdir()
    assert check_target(tmp_path / "empty") is None
    assert check_target(tmp_path / "none") is None


def test_a_missing_parent_is_said(tmp_path):
    with pytest.raises(ValueError, match="is no directory: make it first"):
        check_target(tmp_path / "no" / "bundle")


@pytest.fixture
def places(tmp_path):
    """Ways to name the folder that holds, is, or lies in a source."""
    (tmp_path / "a" / "source" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "source")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("a/source", "a/source", "source is what is read"),
        ("link", "a/source", "link is what is read"),
        ("a/source", "link", "source is what is read"),
        ("a/../a/source", "a/source", "source is what is read"),
        ("a", "a/source", "a holds .*/a/source, what is read"),
        ("a", "link", "a holds .*/link, what is read"),
        ("link/..", "a/source", "holds"),
        ("a/source/new", "a/source", "new lies in .*/a/source, what is read"),
        ("a/source/b/new", "a/source", "lies in"),
        ("link/b/new", "a/source", "lies in"),
        ("a/source/b/../new", "link", "lies in"),
    ],
)
def test_a_target_is_apart_from_its_source(places, target, source, message):
    with pytest.raises(ValueError, match=message):
        check_target(places / target, places / source)


def test_a_file_may_be_a_source(places):
    (places / "a" / "data.jsonl").touch()
    with pytest.raises(ValueError, match="a holds"):
        check_target(places / "a", places / "a" / "data.jsonl")
    check_target(places / "a" / "new", places / "a" / "data.jsonl")


def test_neighbours_are_apart_and_so_is_what_is_no_path(places):
    for source in ("a/source", "link"):
        check_target(places / "a" / "source2", places / source)
        check_target(places / "new", places / source)
    for source in ("Qwen/Qwen2-VL-2B-Instruct", "x" * 5000, "a\0b"):
        check_apart(places / "new", source)


@pytest.mark.skipif(not hasattr(os, "link"), reason="no links here")
def test_the_same_file_by_another_name_is_the_same(places):
    (places / "one.toml").touch()
    os.link(places / "one.toml", places / "two.toml")
    with pytest.raises(ValueError, match="is what is read"):
        check_apart(places / "two.toml", places / "one.toml")
