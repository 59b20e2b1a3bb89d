import numpy as np
import pytest

from vlmedge.quant.compare import reference
from vlmedge.quant.compare.reference import Observation, Shelf, Visual, is_bundle, open_checkpoint
from vlmedge.quant.compare.shelf import ArrayShelf
from vlmedge.runtime.errors import BackendError


def make_observation(seed, num_visuals=2):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    visuals = tuple(
        Visual(f"{28 * (i + 1)}x28", draw(4, 1176), draw(4, 8), draw(1, 16))
        for i in range(num_visuals)
    )
    return Observation(visuals, (1, 2, seed), f"text {seed}", draw(3, 20), seed % 2 == 1)


def assert_same(got, needed):
    assert (got.token_ids, got.text, got.ended) == (needed.token_ids, needed.text, needed.ended)
    np.testing.assert_array_equal(got.logits, needed.logits)
    for ours, theirs in zip(got.visuals, needed.visuals, strict=True):
        assert ours.bucket == theirs.bucket
        for name in ("pixel_values", "before_merger", "image_embeds"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_shelf_gives_back_what_was_put_on_it_in_any_order():
    seen = [make_observation(seed, seed) for seed in range(3)]
    with ArrayShelf() as arrays:
        shelf = Shelf(arrays)
        for index, one in enumerate(seen):
            shelf.put(index, one)
        for index in (2, 0, 1):
            assert_same(shelf.take(index), seen[index])


def test_what_was_taken_is_kept_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ArrayShelf() as arrays:
        shelf = Shelf(arrays)
        shelf.put(0, make_observation(0))
        shelf.put(1, make_observation(1))
        shelf.take(0)
        assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_a_folder_with_a_manifest_is_a_bundle(make_bundle, tmp_path):
    made = make_bundle("tiny")
    assert is_bundle(made.bundle)
    assert not is_bundle(made.checkpoint)
    assert not is_bundle(tmp_path / "none")
    assert not is_bundle("Qwen/Qwen2-VL-2B-Instruct")


def test_checkpoints_are_opened_by_the_entry_point(monkeypatch, tmp_path):
    class Entry:
        def load(self):
            return lambda *args: args

    asked = []

    def find(**group):
        asked.append(group)
        return [Entry()]

    monkeypatch.setattr(reference, "entry_points", find)
    assert open_checkpoint("folder", tmp_path, 2) == ("folder", tmp_path, 2)
    assert asked == [{"group": "vlmedge.checkpoints", "name": "reference"}]


def test_without_the_export_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "entry_points", lambda **_: [])
    with pytest.raises(BackendError, match=r"vlmedge\[verify\]"):
        open_checkpoint("folder", tmp_path, None)
