"""A run that is stopped, killed or out of disk: the old bundle stays, the next run goes on."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from vlmedge.quant.quantize import bundle as bundle_builder
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe, parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

# Quick: nothing is searched for
PLAIN = 'ranges = "minmax"\nsmooth = "off"\nshift = "off"\n'
QUICK = f'name = "quick"\n[vision]\nformat = "int8"\n{PLAIN}[decoder]\nformat = "int8"\n{PLAIN}'
NUM_STAGES = 6  # with linear layers: two blocks and the merger, two layers and the head
# Quantizes, and kills itself before a stage
KILLED = """
import os, signal, sys
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import parse_recipe
source, target, recipe, data, stage = sys.argv[1:]
def stop(done, total, name):
    if done == int(stage):
        os.kill(os.getpid(), signal.SIGKILL)
quantize_bundle(source, target, parse_recipe(recipe, "r"), open_data(data), num_threads=1,
                progress=stop)
"""


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(source, target, text, data=None, **options):
    recipe = parse_recipe(text, "r")
    return quantize_bundle(source, target, recipe, data, num_threads=1, **options)


def stop_at(stage, error):
    def progress(done, total, name):
        if done == stage:
            raise error

    return progress


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def needed(quantize):
    """The files of a run that was never stopped."""
    return read_files(quantize(QUICK).bundle)


def test_the_same_inputs_give_the_same_bytes(source, questions, needed, tmp_path):
    run(source, tmp_path / "other name", QUICK, questions)
    assert read_files(tmp_path / "other name") == needed
    assert os.listdir(tmp_path) == ["other name"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "disk full")])
@pytest.mark.parametrize("stage", [2, 6])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    source, questions, needed, tmp_path, stage, error
):
    with pytest.raises(type(error)):
        run(source, tmp_path / "q", QUICK, questions, progress=stop_at(stage, error))
    assert not (tmp_path / "q").exists()
    (work,) = tmp_path.iterdir()
    assert work.name.startswith(".q.quantize-")
    result = run(source, tmp_path / "q", QUICK, questions)
    # embed has no linear layers: the first stage of either graph is not counted
    assert result.resumed == stage - 1 - (stage > 4)
    assert read_files(tmp_path / "q") == needed
    assert os.listdir(tmp_path) == ["q"]


def test_a_killed_run_leaves_the_old_bundle_and_goes_on(
    source, question_folder, questions, needed, tmp_path
):
    quantize_bundle(source, tmp_path / "q", open_recipe("accurate"), num_threads=1)
    old = read_files(tmp_path / "q")
    args = [source, tmp_path / "q", QUICK, question_folder, "6"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, args)], check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    assert read_files(tmp_path / "q") == old
    result = run(source, tmp_path / "q", QUICK, questions)
    assert result.resumed == 4
    assert read_files(tmp_path / "q") == needed
    assert os.listdir(tmp_path) == ["q"]


def test_a_run_stopped_while_the_bundle_is_written_has_every_stage_left(
    source, questions, needed, tmp_path
):
    def fail(num_bytes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "q", QUICK, questions, advance=fail)
    assert [path.name[:12] for path in tmp_path.iterdir()] == [".q.quantize-"]
    assert run(source, tmp_path / "q", QUICK, questions).resumed == NUM_STAGES
    assert read_files(tmp_path / "q") == needed


def test_another_question_never_uses_what_was_left(source, questions, make_bundle, tmp_path):
    def leave():
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "q", QUICK, questions, progress=stop_at(6, KeyboardInterrupt()))

    leave()
    assert (
        run(
            source, tmp_path / "q", QUICK + '[lm_head]\nformat = "int8-dynamic"\n', questions
        ).resumed
        == 0
    )
    assert os.listdir(tmp_path) == ["q"]  # and it is gone
    leave()
    fewer = type(questions)(questions.name, "c" * 64, questions.examples[:2], {})
    assert run(source, tmp_path / "q", QUICK, fewer).resumed == 0
    leave()
    other = make_bundle("tiny", seed=1).bundle
    assert run(other, tmp_path / "q", QUICK, questions).resumed == 0


def test_a_run_that_goes_on_writes_the_whole_calibration(source, questions, tmp_path):
    files = [tmp_path / "whole.json", tmp_path / "resumed.json"]
    run(source, tmp_path / "q", QUICK, questions, calibration_file=files[0])
    with pytest.raises(KeyboardInterrupt):
        run(
            *(source, tmp_path / "r", QUICK, questions),
            calibration_file=files[1],
            progress=stop_at(6, KeyboardInterrupt()),
        )
    assert not files[1].exists()
    run(source, tmp_path / "r", QUICK, questions, calibration_file=files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_disk_that_fills_up_is_told_and_leaves_nothing_half_written(
    source, question_folder, tmp_path
):
    # No file may grow beyond the limit: a bundle's data file is larger, the stages are smaller.
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")
    args = [source, tmp_path / "q", QUICK, question_folder, "-1"]
    limit = 40_000
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ended.returncode == 1
    assert "File too large" in ended.stderr.splitlines()[-1]
    left = os.listdir(tmp_path)
    assert len(left) == 1
    assert left[0].startswith(".q.quantize-")  # the finished stages, for the next run


def test_room_on_the_disk_is_asked_for_before_writing(make_bundle, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bundle_builder, "check_free_space", lambda _, size: asked.append(size))
    for preset in ("accurate", "cpu"):  # a table of its own, and none
        quantize_bundle(make_bundle("tiny").bundle, tmp_path / preset, open_recipe(preset))
        files = read_manifest(tmp_path / preset).files
        large = [r.bytes for name, r in files.items() if name.endswith((".data", ".bin"))]
        assert asked.pop() == sum(large)


def test_a_full_disk_leaves_the_old_bundle(make_bundle, tmp_path, monkeypatch):
    source = make_bundle("tiny").bundle
    quantize_bundle(source, tmp_path / "q", open_recipe("accurate"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "q").iterdir()}
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"needs .* GB on the disk"):
        quantize_bundle(source, tmp_path / "q", open_recipe("cpu"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "q").iterdir()} == before
    assert not list(tmp_path.glob(".q.partial*"))
