"""Sweeps of the sample model, in this process: complete, the same however divided, resumable."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.report.result_json import read_result
from vlmedge.quant.sweep.plan import read_sweep
from vlmedge.quant.sweep.process_pool import call_function
from vlmedge.quant.sweep.run import lock_folder, run_sweep
from vlmedge.quant.sweep.schedule import make_schedule
from vlmedge.quant.sweep.units import Outcome

READER = Path(__file__).parents[3] / "samples" / "reader"
LEVELS = ("embeddings", "logits", "texts", "tasks")
NUMBERS = ("42", "7", "1234", "305", "88")
RECIPES = {
    "eight": 'name = "eight"\n[decoder]\nformat = "int8-weight"\n',
    "static": 'name = "static"\n[vision]\nformat = "int8"\nranges = "minmax"\nsmooth = "off"\n',
    # four bits and long blocks, rounded to nearest: it still reads, but embeddings are far off
    "coarse": 'name = "coarse"\n[vision]\nformat = "int4-weight"\nblock_size = 256\n'
    '[decoder]\nformat = "int4-weight"\nblock_size = 256\n',
}
SWEEP = """
sources = ["float"]
recipes = ["eight.toml", "static.toml"]
[data]
source = "data.jsonl"
num_shards = 3
[calibration]
source = "calibration.jsonl"
[check]
max_new_tokens = 6
gate = "gate.toml"
"""


class HerePool:
    """Calls in this process; the units of `deaths` die so many times, those of `failing` fail."""

    num_workers = 1

    def __init__(self, deaths=None):
        self.deaths = dict(deaths or {})
        self.calls = []

    def start(self, key, function, kwargs):
        self.calls.append(key)
        self._call = (key, function, kwargs)

    def wait(self):
        key, function, kwargs = self._call
        if self.deaths.get(key, 0):
            self.deaths[key] -= 1
            return Outcome(key, death="killed")
        return Outcome(key, **call_function(function, kwargs))

    def close(self):
        pass


def write_data(path, numbers):
    rows = []
    for number in numbers:
        picture = Image.new("RGB", (112, 84), "white")
        ImageDraw.Draw(picture).text((20, 20), number, fill="black", font_size=32)
        name = f"{path.stem}-{number}.png"
        picture.save(path.parent / name)
        parts = [{"type": "image", "image": name}, {"type": "text", "text": "Read the number."}]
        rows.append(
            {
                "id": number,
                "task": "long" if len(number) > 2 else "short",
                "messages": [{"role": "user", "content": parts}],
                "answer": number,
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A float bundle, data, recipes and a gate."""
    folder = tmp_path_factory.mktemp("sample")
    export_checkpoint(READER, folder / "float", ExportOptions("fp32"))
    write_data(folder / "data.jsonl", NUMBERS)
    write_data(folder / "calibration.jsonl", ("19", "650"))
    for name, text in RECIPES.items():
        (folder / f"{name}.toml").write_text(text)
    (folder / "gate.toml").write_text(
        "[text]\nexact_match_min = 0.9\n[image_embeds]\nrel_l2_max = 0.1\n"
    )
    return folder


def sweep_here(folder, out, text=SWEEP, pool=None):
    path = folder / f"sweep-{out.name}.toml"
    path.write_text(text)
    sweep = read_sweep(path)
    pool = pool or HerePool()
    found = run_sweep(sweep, make_schedule(sweep, out, 1), out, pool)
    return found, pool


@pytest.fixture(scope="module")
def swept(sample, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "out"
    return sweep_here(sample, out)[0], out


def test_a_divided_sweep_finds_what_undivided_checks_find(sample, swept):
    found, out = swept
    data = open_data(str(sample / "data.jsonl"))
    assert [row.candidate.name for row in found.rows] == ["float/eight", "float/static"]
    assert not found.failed
    for row in found.rows:
        plan = CheckPlan(LEVELS, max_new_tokens=6, num_threads=1)
        whole = run_check(row.candidate.bundle, sample / "float", data, plan)
        assert row.result == whole
        assert [task.num_examples for task in row.result.tasks] == [3, 2]
        assert row.verdict is not None
        assert row.verdict.passed
        assert row.num_bytes < row.float_bytes
        assert row.quantize_s > 0
        written = read_result(out / "reports" / f"{row.candidate.name}.json")
        assert written == whole
    bundles = [row.candidate.bundle for row in found.rows]
    assert bundles == [out / "bundles" / "float" / name for name in ("eight", "static")]


def test_workers_that_die_change_nothing(sample, swept, tmp_path):
    deaths = {"check/float/eight/1-of-3": 2, "quantize/float/static": 1}
    found, pool = sweep_here(sample, tmp_path / "out", pool=HerePool(deaths))
    assert not found.failed
    assert pool.calls.count("check/float/eight/1-of-3") == 3
    assert [row.result for row in found.rows] == [row.result for row in swept[0].rows]


def test_a_second_run_has_nothing_left_to_do_and_a_new_recipe_only_itself(sample, tmp_path):
    out = tmp_path / "out"
    one = SWEEP.replace('"eight.toml", "static.toml"', '"eight.toml"')
    first, _ = sweep_here(sample, out, one)
    again, pool = sweep_here(sample, out, one)
    assert pool.calls == []
    assert again == first
    more = one.replace('"eight.toml"', '"eight.toml", "coarse.toml"')
    found, pool = sweep_here(sample, out, more)
    assert pool.calls == [
        "quantize/float/coarse",
        *(f"check/float/coarse/{i}-of-3" for i in range(3)),
    ]
    assert found.rows[0] == first.rows[0]
    assert [row.verdict.passed for row in found.rows] == [True, False]
    shutil.rmtree(out / "bundles" / "float" / "eight")
    _, pool = sweep_here(sample, out, one)
    assert pool.calls == ["quantize/float/eight"]  # made again; its checks still hold


def test_what_fails_leaves_the_other_bundles_complete(sample, tmp_path):
    shutil.copytree(sample / "float", tmp_path / "older")
    ready = SWEEP.replace('recipes = ["eight.toml", "static.toml"]', 'recipes = ["eight.toml"]')
    ready = f'bundles = ["{tmp_path}/older"]\n{ready}'
    path = sample / "sweep-ready.toml"
    path.write_text(ready)
    sweep = read_sweep(path)
    schedule = make_schedule(sweep, tmp_path / "out", 1)
    manifest = json.loads((tmp_path / "older" / "manifest.json").read_text())
    (tmp_path / "older" / manifest["graphs"]["decoder"]["file"]).unlink()
    found = run_sweep(sweep, schedule, tmp_path / "out", HerePool())
    assert [row.candidate.name for row in found.rows] == ["float/eight"]
    assert set(found.failed) == {f"check/older/{i}-of-3" for i in range(3)}
    assert all("older" in why for why in found.failed.values())


def test_a_ready_bundle_is_judged_beside_those_that_are_made(sample, tmp_path):
    text = f'bundles = ["{sample}/float"]\n[data]\nsource = "data.jsonl"\n'
    text += '[check]\nlevels = ["texts"]\nagainst = "float"\nmax_new_tokens = 6\n'
    found, pool = sweep_here(sample, tmp_path / "out", text)
    (row,) = found.rows
    assert pool.calls == ["check/float/0-of-1"]
    assert (row.candidate.name, row.candidate.recipe, row.quantize_s) == ("float", None, None)
    assert row.num_bytes == row.float_bytes
    assert (
        [t.got for t in row.result.texts]
        == list(NUMBERS)
        == [t.reference for t in row.result.texts]
    )
    assert row.verdict is None


def test_speed_is_measured_last_and_with_nothing_beside_it(sample, tmp_path):
    class Watcher(HerePool):
        num_workers = 4

        def __init__(self):
            super().__init__()
            self.running, self.beside = {}, []

        def start(self, key, function, kwargs):
            self.calls.append(key)
            self.running[key] = (function, kwargs)

        def wait(self):
            key = next(iter(self.running))
            if key.startswith("speed/"):
                self.beside.append(len(self.running))
            function, kwargs = self.running.pop(key)
            return Outcome(key, **call_function(function, kwargs))

    text = SWEEP.replace("[check]", '[check]\nnum_speed_runs = 1\nlevels = ["texts", "speed"]')
    text = text.replace('"eight.toml", "static.toml"', '"eight.toml"')
    text = text.replace("num_shards = 3", "num_shards = 2").replace(
        "data.jsonl", "calibration.jsonl", 1
    )
    text = text[: text.index("[calibration]")] + text[text.index("[check]") :]
    text = text.replace('gate = "gate.toml"', "")
    pool = Watcher()
    found, _ = sweep_here(sample, tmp_path / "out", text, pool)
    assert not found.failed
    assert pool.beside == [1]
    assert pool.calls[-1] == "speed/float/eight"
    assert {finding.what for finding in found.rows[0].result.speed} >= {"vision", "decode"}


def test_a_checkpoint_is_exported_once(sample, tmp_path):
    text = SWEEP.replace('["float"]', f'["{READER}"]').replace("num_shards = 3", "num_shards = 1")
    text = text.replace('"static.toml"', '"coarse.toml"')
    found, pool = sweep_here(sample, tmp_path / "out", text)
    assert not found.failed
    assert [key for key in pool.calls if key.startswith("export/")] == ["export/reader"]
    for row in found.rows:
        assert row.candidate.against == str(tmp_path / "out" / "bundles" / "reader" / "float")


def test_a_folder_is_one_sweeps_at_a_time(tmp_path):
    out = tmp_path / "out"
    busy = pytest.raises(ValueError, match="another sweep is at work in")
    with lock_folder(out), busy, lock_folder(out):
        pass
    with lock_folder(out):
        pass
    (tmp_path / "letters.txt").touch()
    taken = pytest.raises(ValueError, match="holds something else than a sweep")
    with taken, lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "poetry", "vlmedge sweep\nand more"])
def test_a_lock_alone_makes_no_sweep(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    (tmp_path / "sweep.json").write_text("mine")
    (tmp_path / "letters.txt").touch()
    with (
        pytest.raises(ValueError, match="holds something else than a sweep"),
        lock_folder(tmp_path),
    ):
        pass
    assert (tmp_path / "sweep.json").read_text() == "mine"
    assert (tmp_path / ".lock").read_text() == content


def test_a_sweep_of_an_older_version_goes_on(tmp_path):
    (tmp_path / ".lock").touch()  # which said nothing
    (tmp_path / "units").mkdir()
    (tmp_path / "sweep.csv").touch()
    with lock_folder(tmp_path):
        pass
    (tmp_path / "notes.txt").touch()  # it is known by now
    with lock_folder(tmp_path):
        pass


def test_rows_can_be_compared_field_by_field(swept):
    """The tests above compare rows whole: an ignored field would make them idle."""
    row = swept[0].rows[0]
    for field in dataclasses.fields(row):
        assert field.compare, field.name
