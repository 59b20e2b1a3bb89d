"""`vlmedge sweep` in processes of its own, one of them killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from vlmedge.quant.cli.sweep import choose_threads, make_watcher, sweep
from vlmedge.quant.sweep.units import Event

RECIPE = 'name = "{name}"\n[decoder]\nformat = "{name}-weight"\nblock_size = 32\n'
SWEEP = """
sources = ["{float}"]
recipes = ["int8.toml", "int4.toml"]
data = {{source = "data.jsonl", num_shards = 2}}
check.levels = ["embeddings", "logits", "tasks"]
check.max_new_tokens = 3
"""
MAIN = """
import typer
from vlmedge.quant.cli.sweep import sweep
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(sweep)
app()
"""


@pytest.fixture
def folder(tmp_path, make_bundle):
    generator = np.random.default_rng(0)
    rows = []
    for index in range(4):
        name = f"{index}.png"
        Image.fromarray(generator.integers(0, 256, (56, 56, 3), np.uint8)).save(tmp_path / name)
        parts = [{"type": "image", "image": name}, {"type": "text", "text": "What?"}]
        messages = [{"role": "user", "content": parts}]
        rows.append({"id": str(index), "messages": messages, "answer": "x"})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("int8", "int4"):
        (tmp_path / f"{name}.toml").write_text(RECIPE.format(name=name))
    (tmp_path / "sweep.toml").write_text(SWEEP.format(float=make_bundle("tiny").bundle))
    return tmp_path


def test_a_sweep_is_not_written_into_what_it_reads(folder, make_bundle):
    bundle = make_bundle("tiny").bundle
    done = run_here(folder / "sweep.toml", "--out", bundle / "sweep")
    assert isinstance(done.exception, ValueError)
    assert "lies in" in str(done.exception)
    assert not (bundle / "sweep").exists()


def run_here(*args):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(sweep)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def start(folder, out, *args):
    command = [sys.executable, "-c", MAIN, str(folder / "sweep.toml"), "--out", str(out), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def find_workers(pid):
    """Processes whose parent is `pid`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry))
    return found


def strip_times(out):
    content = json.loads((out / "sweep.json").read_text())
    for bundle in content["bundles"]:
        for key in ("quantize_s", "check_s", "path"):
            bundle.pop(key)
    return content


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds workers by /proc")
def test_a_killed_worker_and_a_killed_sweep_end_in_the_same_tables(folder):
    """Two workers, one of them killed half-way; then the sweep itself; then it is called again."""
    text = (folder / "sweep.toml").read_text()
    (folder / "sweep.toml").write_text(text.replace('"int8.toml", ', ""))
    out = folder / "out"
    first = start(folder, out, "--workers", "2")
    deadline = time.monotonic() + 60
    while not (workers := find_workers(first.pid)):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    while not list((out / "units").rglob("*.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.kill()
    _, errors = first.communicate()
    assert "died: the worker was ended by signal SIGKILL" in errors
    assert not (out / "sweep.json").exists()

    kept = {path: path.stat().st_mtime_ns for path in (out / "units").rglob("*.json")}
    second = start(folder, out, "--workers", "2")
    table, errors = second.communicate()
    assert second.returncode == 0, errors
    assert "int4" in table
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())

    serial = run_here(folder / "sweep.toml", "--out", folder / "serial", "--json", "--threads", 1)
    assert serial.exit_code == 0, serial.output
    assert strip_times(out) == strip_times(folder / "serial")
    assert json.loads(serial.stdout) == json.loads((folder / "serial" / "sweep.json").read_text())
    (bundle,) = strip_times(out)["bundles"]
    assert bundle["tasks"][0]["num_examples"] == 4


def test_what_fails_is_told_and_ends_with_1(folder):
    text = (folder / "sweep.toml").read_text()
    (folder / "sweep.toml").write_text(text.replace("num_shards = 2", "num_shards = 1"))
    layers = '[[layers]]\npattern = "no.such"\nformat = "int8-weight"\n'
    (folder / "int8.toml").write_text(f'name = "int8"\n{layers}')
    done = run_here(folder / "sweep.toml", "--out", folder / "out")
    assert done.exit_code == 1
    content = json.loads((folder / "out" / "sweep.json").read_text())
    assert [bundle["recipe"] for bundle in content["bundles"]] == ["int4"]
    assert len(content["failed"]) == 2
    assert "no.such" in done.stderr
    assert "2 of 4 units are not done" in done.stderr


def test_a_bad_file_ends_before_anything_is_written(folder):
    (folder / "sweep.toml").write_text("sources = 3")
    done = run_here(folder / "sweep.toml", "--out", folder / "out")
    assert isinstance(done.exception, ValueError)
    assert not (folder / "out").exists()


def test_cores_are_shared_by_the_workers(monkeypatch):
    monkeypatch.setattr("vlmedge.runtime.threads.count_cpus", lambda: 6)
    assert choose_threads(None, on_ray=False) == 6
    assert choose_threads(4, on_ray=False) == 1
    assert choose_threads(2, on_ray=False) == 3
    assert choose_threads(9, on_ray=False) == 1
    assert choose_threads(None, on_ray=True) == 1


def test_progress_counts_each_unit_once_and_tells_what_goes_wrong(capsys):
    steps = []
    watch = make_watcher(lambda ended, name: steps.append((ended, name)))
    for kind, key in (
        ("kept", "a"),
        ("started", "b"),
        ("died", "b"),
        ("started", "b"),
        ("done", "b"),
        ("failed", "c"),
        ("kept", "a"),
    ):
        watch(Event(kind, key, 0, 3, "why"))
    assert [ended for ended, _ in steps] == [1, 1, 1, 1, 2, 3, 3]
    assert capsys.readouterr().err == (
        "vlmedge sweep: b died: why, it is tried again\nvlmedge sweep: c failed: why\n"
    )
