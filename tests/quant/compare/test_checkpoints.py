"""A checkpoint is a float bundle for as long as one is needed."""

import os
from types import SimpleNamespace

import pytest

from vlmedge.quant.compare import checkpoints
from vlmedge.quant.compare.checkpoints import float_bundle
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BackendError


def test_a_bundle_is_itself_and_stays(make_bundle, tmp_path):
    bundle = make_bundle("tiny").bundle
    with float_bundle(str(bundle), tmp_path / "q") as folder:
        assert folder == bundle
    assert read_manifest(bundle)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_is_exported_in_float32_beside_the_target_and_removed(make_bundle, tmp_path):
    made = make_bundle("tiny")
    steps = []
    with float_bundle(str(made.checkpoint), tmp_path / "q", lambda *step: steps.append(step)) as f:
        assert f.parent.parent == tmp_path
        assert f.parent.name.startswith(".q.float-")  # hidden
        exported, needed = read_manifest(f), read_manifest(made.bundle)
        assert {n: r.sha256 for n, r in exported.files.items()} == {
            n: r.sha256 for n, r in needed.files.items()
        }
    assert os.listdir(tmp_path) == []
    done, total, _ = steps[-1]
    assert done == total > 0


def test_an_error_inside_removes_it_as_well(make_bundle, tmp_path):
    def fail():
        with float_bundle(str(make_bundle("tiny").checkpoint), tmp_path / "q"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_is_no_checkpoint_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises((ValueError, OSError)),
        float_bundle(str(tmp_path / "empty"), tmp_path / "q"),
    ):
        pass
    assert os.listdir(tmp_path) == ["empty"]


def test_a_target_that_holds_something_else_is_told_before_the_export(make_bundle, tmp_path):
    checkpoint = make_bundle("tiny").checkpoint
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "thesis.tex").touch()
    for target, message in ((tmp_path / "q", "left alone"), (checkpoint, "is what is read")):
        with pytest.raises(ValueError, match=message), float_bundle(str(checkpoint), target):
            pass
    assert os.listdir(tmp_path) == ["q"]


def test_without_an_exporter_it_says_what_to_install(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "entry_points", lambda **_: [])
    with (
        pytest.raises(BackendError, match=r"pip install 'vlmedge\[export\]'"),
        float_bundle(str(make_bundle("tiny").checkpoint), tmp_path / "q"),
    ):
        pass


def test_any_distribution_can_be_the_exporter(tmp_path, monkeypatch):
    calls = []

    def export(source, path, options, progress):
        calls.append((source, options))
        path.mkdir()

    entry = SimpleNamespace(load=lambda: export)
    monkeypatch.setattr(checkpoints, "entry_points", lambda **_: [entry])
    with float_bundle("owner/model", tmp_path / "q") as folder:
        assert folder.is_dir()
    assert calls == [("owner/model", None)]
    assert os.listdir(tmp_path) == []
