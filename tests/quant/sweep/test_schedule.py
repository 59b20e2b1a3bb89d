"""The units of a sweep: which there are, what they need, and what decides their results."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.sweep.plan import read_sweep
from vlmedge.quant.sweep.schedule import make_schedule
from vlmedge.quant.sweep.units import fingerprint_units
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.errors import BundleError

PLAIN = 'name = "plain"\n[decoder]\nformat = "int8-weight"\n'
STATIC = 'name = "static"\n[vision]\nformat = "int8"\n'
SWEEP = """
sources = ["{float}"]
recipes = ["plain.toml", "static.toml"]
data = {{source = "data.jsonl", num_shards = 2}}
calibration.source = "calibration.jsonl"
[check]
levels = ["embeddings", "tasks", "layers", "speed"]
"""


def write_data(path, names, answer="x"):
    generator = np.random.default_rng(len(path.stem))
    rows = []
    for name in names:
        picture = Image.fromarray(generator.integers(0, 256, (28, 28, 3), np.uint8))
        picture.save(path.parent / f"{path.stem}-{name}.png")
        parts = [
            {"type": "image", "image": f"{path.stem}-{name}.png"},
            {"type": "text", "text": "What?"},
        ]
        rows.append({"id": name, "messages": [{"role": "user", "content": parts}]})
        if answer:
            rows[-1]["answer"] = answer
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plain.toml").write_text(PLAIN)
    (tmp_path / "static.toml").write_text(STATIC)
    write_data(tmp_path / "data.jsonl", "abc")
    write_data(tmp_path / "calibration.jsonl", "de")
    return tmp_path


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("tiny").bundle


def schedule(folder, text, num_threads=1):
    (folder / "sweep.toml").write_text(text)
    return make_schedule(read_sweep(folder / "sweep.toml"), folder / "out", num_threads)


def test_every_recipe_is_quantized_once_and_checked_in_shards(folder, bundle):
    made = schedule(folder, SWEEP.format(float=bundle))
    name = bundle.name
    needs = {unit.key: unit.needs for unit in made.units}
    plain = f"quantize/{name}/plain"
    assert needs == {
        plain: (),
        f"check/{name}/plain/0-of-2": (plain,),
        f"check/{name}/plain/1-of-2": (plain,),
        f"layers/{name}/plain": (plain,),
        f"quantize/{name}/static": (),
        f"check/{name}/static/0-of-2": (f"quantize/{name}/static",),
        f"check/{name}/static/1-of-2": (f"quantize/{name}/static",),
        f"layers/{name}/static": (f"quantize/{name}/static",),
    }
    assert [unit.key for unit in made.alone] == [f"speed/{name}/plain", f"speed/{name}/static"]
    assert all(unit.needs == () for unit in made.alone)
    by_key = {unit.key: unit for unit in made.units}
    shard = by_key[f"check/{name}/plain/1-of-2"].kwargs
    assert (shard["shard"], shard["num_shards"]) == (1, 2)
    assert shard["levels"] == ["embeddings", "texts"]  # tasks are scored out of the answers
    assert shard["bundle"] == str(folder / "out" / "bundles" / name / "plain")
    assert shard["against"] == str(bundle)
    assert by_key[plain].kwargs["data"] is None  # it needs none
    assert by_key[f"quantize/{name}/static"].kwargs["data"]["source"].endswith("calibration.jsonl")


def test_there_are_not_more_shards_than_examples(folder, bundle):
    text = SWEEP.format(float=bundle).replace("num_shards = 2", "num_shards = 99")
    made = schedule(folder, text)
    assert f"check/{bundle.name}/plain/2-of-3" in {unit.key for unit in made.units}
    assert len([unit for unit in made.units if unit.key.startswith("check/")]) == 6


def test_levels_of_the_whole_alone_make_no_shards(folder, bundle):
    text = SWEEP.format(float=bundle).replace('"embeddings", "tasks", ', "")
    keys = [unit.key.partition("/")[0] for unit in schedule(folder, text).units]
    assert keys == ["quantize", "layers", "quantize", "layers"]


def test_a_checkpoint_is_exported_before_everything_that_needs_it(folder, make_bundle):
    checkpoint = make_bundle("tiny").checkpoint
    made = schedule(folder, SWEEP.format(float=checkpoint))
    export = f"export/{checkpoint.name}"
    assert made.units[0].key == export
    for unit in made.units[1:]:
        assert export in unit.needs
    for candidate in made.candidates:
        assert candidate.needs == (candidate.quantize, export)


def fingerprints(made):
    return {**fingerprint_units(made.units), **fingerprint_units(made.alone)}


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ("threads", ()),
        ("nothing", ()),
        ("plain recipe", ("plain",)),
        ("comment in a recipe", ()),
        ("calibration", ("static",)),
        ("data", ("checks",)),
        ("float bundle", ("plain", "static")),
        ("answer length", ("checks",)),
    ],
)
def test_exactly_what_depends_on_a_change_is_done_again(
    folder, bundle, make_bundle, change, redone
):
    text = SWEEP.format(float=bundle)
    before = fingerprints(schedule(folder, text))
    threads = 1
    match change:
        case "threads":
            threads = 2
        case "plain recipe":
            (folder / "plain.toml").write_text(PLAIN + "block_size = 32\n")
        case "comment in a recipe":
            (folder / "plain.toml").write_text(f"# new\n{PLAIN}")
        case "calibration":
            write_data(folder / "calibration.jsonl", "dfg")
        case "data":
            write_data(folder / "data.jsonl", "abc", "y")
        case "answer length":
            text += "max_new_tokens = 4\n"
        case "float bundle":
            manifest = json.loads((bundle / "manifest.json").read_text())
            copy = folder / "copy" / bundle.name
            copy.mkdir(parents=True)
            for file in bundle.iterdir():
                (copy / file.name).symlink_to(file)
            (copy / "manifest.json").unlink()
            manifest["files"] = dict(reversed(manifest["files"].items()))
            (copy / "manifest.json").write_text(seal_manifest(manifest))
            text = SWEEP.format(float=copy)
    after = fingerprints(schedule(folder, text, threads))
    changed = {key for key in before if before[key] != after[key]}
    assert set(before) == set(after)
    expected = {key for key in before if any(f"/{name}" in key for name in redone)}
    if "checks" in redone:
        expected = {key for key in before if not key.startswith("quantize/")}
    assert changed == expected


def test_data_that_a_bundle_was_fitted_to_does_not_judge_it(folder, bundle):
    text = SWEEP.format(float=bundle).replace("calibration.jsonl", "data.jsonl")
    with pytest.raises(ValueError, match="is calibrated with and judged by"):
        schedule(folder, text)


def test_tasks_need_answers(folder, bundle):
    write_data(folder / "data.jsonl", "abc", None)
    with pytest.raises(ValueError, match="tasks can't be compared: no example of data"):
        schedule(folder, SWEEP.format(float=bundle))


def test_speed_cannot_be_held_against_a_checkpoint(folder, make_bundle):
    made = make_bundle("tiny")
    text = SWEEP.format(float=made.bundle) + f'against = "{made.checkpoint}"\n'
    with pytest.raises(ValueError, match="speed can't be compared"):
        schedule(folder, text)
    (candidate, _) = schedule(folder, text.replace(', "speed"', "")).candidates
    assert candidate.against == str(made.checkpoint)


def test_a_damaged_source_is_told_before_any_work(folder, bundle):
    damaged = folder / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    with pytest.raises(BundleError):
        schedule(folder, SWEEP.format(float=damaged))


def test_paths_do_not_depend_on_where_a_worker_starts(folder, bundle, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "sweep.toml").write_text(SWEEP.format(float=bundle))
    made = make_schedule(read_sweep("sweep.toml"), Path("out"), 1)
    for unit in made.units:
        paths = [unit.kwargs[key] for key in ("source", "bundle", "against") if key in unit.kwargs]
        paths += [unit.kwargs["data"]["source"]] if unit.kwargs["data"] else []
        assert all(Path(path).is_absolute() for path in paths)
        json.dumps(dataclasses.asdict(unit), allow_nan=False)
