"""A bundle replaced under a loaded model: old tables and new graphs never answer together."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vlmedge.runtime.backends.ort import backend as ort_backend
from vlmedge.runtime.bundle import guard as bundle_guard
from vlmedge.runtime.bundle.guard import BundleGuard, read_guarded
from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.model import Model
from vlmedge.runtime.options import GenerationOptions

OPTIONS = GenerationOptions(max_new_tokens=4, ignore_eos=True)
PICTURE = Image.new("RGB", (56, 56), (10, 90, 200))


@pytest.fixture
def two(make_bundle, tmp_path):
    """Two bundles of one shape and other weights; the first is opened."""
    first = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "model.bundle")
    second = shutil.copytree(make_bundle("tiny", seed=1).bundle, tmp_path / "new.bundle")
    return first, second


def swap(first: Path, second: Path) -> None:
    """As the exporter puts a new bundle in place."""
    first.rename(first.with_name("old.bundle"))
    second.rename(first)


def overwrite(first: Path, second: Path) -> None:
    """As `cp` does: the same files, other bytes."""
    for path in second.iterdir():
        with (first / path.name).open("r+b") as file:
            file.write(path.read_bytes())
            file.truncate()


@pytest.mark.parametrize("residency", ["all", "one"])
def test_a_graph_that_is_opened_later_is_not_the_new_ones(two, residency):
    first, second = two
    with Model.load(first, num_threads=1, residency=residency) as model:
        swap(first, second)
        with pytest.raises(BundleError, match=r"replaced since it was loaded.*load it again"):
            model.answer("What is it?", options=OPTIONS)


def test_a_graph_that_is_opened_again_is_not_the_new_ones(two):
    first, second = two
    with Model.load(first, num_threads=1, residency="one") as model:
        model.answer("What is it?", [PICTURE], options=OPTIONS)
        swap(first, second)
        with pytest.raises(BundleError, match="replaced since it was loaded"):
            model.answer("What is it?", [PICTURE], options=OPTIONS)


def test_a_model_that_holds_everything_answers_on_and_says_so(two):
    first, second = two
    with Model.load(first, num_threads=1) as model:
        before = model.answer("What is it?", [PICTURE], options=OPTIONS)
        assert not before.notices
        assert not model.notices
        swap(first, second)
        after = model.answer("What is it?", [PICTURE], options=OPTIONS)
        assert after.token_ids == before.token_ids
        (notice,) = after.notices
        assert "was replaced since it was loaded, answers are still the old one's" in notice
        assert model.notices == (notice,)
        (streamed,) = (
            model.stream([{"role": "user", "content": "What is it?"}], OPTIONS).read().notices
        )
        assert streamed == notice


def test_a_link_that_is_set_to_another_bundle_is_noticed(two, tmp_path):
    first, second = two
    (tmp_path / "current").symlink_to(first)
    with Model.load(tmp_path / "current", num_threads=1) as model:
        (tmp_path / "next").symlink_to(second)
        (tmp_path / "next").replace(tmp_path / "current")
        with pytest.raises(BundleError, match="replaced since it was loaded"):
            model.answer("What is it?", options=OPTIONS)


def test_a_bundle_that_is_overwritten_in_place_answers_no_more(two):
    """What is mapped into memory has changed, too."""
    first, second = two
    with Model.load(first, num_threads=1) as model:
        model.answer("What is it?", [PICTURE], options=OPTIONS)
        overwrite(first, second)
        with pytest.raises(BundleError, match="written to since it was loaded"):
            model.answer("What is it?", [PICTURE], options=OPTIONS)


def test_an_answer_that_is_overtaken_by_a_write_is_not_given(two):
    first, second = two
    with Model.load(first, num_threads=1) as model:
        model.answer("What is it?", options=OPTIONS)
        stream = model.stream([{"role": "user", "content": "What is it?"}], OPTIONS)
        next(iter(stream))
        overwrite(first, second)
        with pytest.raises(BundleError, match="written to since it was loaded"):
            stream.read()


def test_a_removed_bundle_is_told(two):
    first, _ = two
    with Model.load(first, num_threads=1) as model:
        shutil.rmtree(first)
        with pytest.raises(BundleError, match="replaced since it was loaded"):
            model.answer("What is it?", options=OPTIONS)


def test_a_swap_between_the_manifest_and_the_files_is_noticed(two, monkeypatch):
    first, second = two
    read = bundle_guard.read_manifest

    def read_and_swap(folder):
        manifest = read(folder)
        swap(first, second)
        return manifest

    monkeypatch.setattr(bundle_guard, "read_manifest", read_and_swap)
    with pytest.raises(BundleError, match=r"manifest\.json is another"):
        read_guarded(first)


def test_a_swap_while_a_graph_is_read_is_noticed(two, monkeypatch):
    first, second = two
    open_session = ort_backend.open_session

    def open_and_swap(*arguments, **options):
        swap(first, second)
        return open_session(*arguments, **options)

    with Model.load(first, num_threads=1) as model:
        monkeypatch.setattr(ort_backend, "open_session", open_and_swap)
        with pytest.raises(BundleError, match="replaced since it was loaded"):
            model.answer("What is it?", options=OPTIONS)


def test_states_of_a_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    guard = BundleGuard(tmp_path, ("a", "missing"))
    assert guard.find_change() == ("same", "")
    os.utime(path, ns=(1, 1))
    assert guard.find_change() == ("overwritten", "a")
    guard = BundleGuard(tmp_path, ("a", "missing"))
    (tmp_path / "b").write_bytes(b"1234")
    (tmp_path / "b").replace(path)
    assert guard.find_change() == ("replaced", "a")
    guard = BundleGuard(tmp_path, ("a", "missing"))
    (tmp_path / "missing").touch()
    assert guard.find_change() == ("replaced", "missing")
