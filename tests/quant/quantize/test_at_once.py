"""Two runs to one target, a source that changes, a kill at any moment: whole, and no mixture."""

import os
import shutil
import signal
import subprocess
import sys

import onnx
import pytest

from vlmedge.export.exporter import export_checkpoint
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.files.hashed_file import write_small
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe, parse_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest, to_json

RECIPE = 'name = "plain"\n[vision]\nformat = "int8-weight"\n[decoder]\nformat = "int8-weight"\n'
# Quantizes, and waits in the middle until its stdin is closed
HELD = """
import sys
from vlmedge.runtime.cli import main as cli
from vlmedge.quant.quantize import model_quantizer
run = model_quantizer.ModelQuantizer.run
def wait_and_run(self):
    print("ready", flush=True)
    sys.stdin.read()
    return run(self)
model_quantizer.ModelQuantizer.run = wait_and_run
sys.exit(cli.main(["quantize", *sys.argv[1:]]))
"""
# Quantizes, and kills itself at the nth change of the disk after the first stage was begun
KILLED = """
import os, signal, sys
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import parse_recipe
source, target, recipe, last = sys.argv[1:]
count = 0
def note(event, args):
    global count
    if event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"):
        count += 1
        if count == int(last):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(note)
quantize_bundle(source, target, parse_recipe(recipe, "r"), num_threads=1)
print(count)
"""


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(source, target, text=RECIPE, **options):
    return quantize_bundle(source, target, parse_recipe(text, "r"), num_threads=1, **options)


@pytest.fixture
def hold():
    """Start a quantization that waits in the middle."""
    started = []

    def start(*args):
        process = subprocess.Popen(
            [sys.executable, "-c", HELD, *map(str, args), "--threads", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


OTHERS = {
    "the same": lambda made, target: quantize_bundle(made.bundle, target, open_recipe("accurate")),
    "another recipe": lambda made, target: quantize_bundle(made.bundle, target, open_recipe("cpu")),
    "an export": lambda made, target: export_checkpoint(made.checkpoint, target),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_the_second_to_one_target_is_told_and_the_first_ends_well(
    make_bundle, tmp_path, hold, kind, other
):
    made = make_bundle("tiny")
    first = hold(getattr(made, kind), tmp_path / "q", "--recipe", "accurate")
    with pytest.raises(ValueError, match=f"pid {first.pid}.* name another target"):
        OTHERS[other](made, tmp_path / "q")
    _, errors = first.communicate("")
    assert first.returncode == 0, errors
    needed = quantize_bundle(made.bundle, tmp_path / "needed", open_recipe("accurate"))
    assert read_manifest(tmp_path / "q").files == needed.manifest.files
    assert sorted(os.listdir(tmp_path)) == ["needed", "q"]


def test_a_killed_run_from_a_checkpoint_leaves_nothing_after_the_next(make_bundle, tmp_path, hold):
    made = make_bundle("tiny")
    first = hold(made.checkpoint, tmp_path / "q", "--recipe", "accurate")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert any(name.startswith(".q.float-") for name in os.listdir(tmp_path))
    hold(made.checkpoint, tmp_path / "q", "--recipe", "accurate").communicate("")
    assert os.listdir(tmp_path) == ["q"]


@pytest.fixture(scope="module")
def num_changes(source, tmp_path_factory):
    """How often a run of `KILLED` changes the disk."""
    target = tmp_path_factory.mktemp("counted") / "q"
    quantize_bundle(source, target, open_recipe("cpu"))
    args = [str(source), str(target), RECIPE, "-1"]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *args], capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_a_run_that_is_killed_at_any_moment_is_done_by_the_next(
    source, tmp_path, num_changes, share
):
    target = tmp_path / "q"
    old = quantize_bundle(source, target, open_recipe("cpu")).manifest
    last = 1 + round(share * (num_changes - 1))
    args = [str(source), str(target), RECIPE, str(last)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *args], check=False)
    assert ended.returncode == -signal.SIGKILL
    found = read_manifest(target)
    needed = run(source, tmp_path / "needed").manifest
    assert found.files in (old.files, needed.files)
    assert run(source, target).manifest.files == needed.files
    assert read_files(target).keys() == {"manifest.json", *needed.files}
    assert sorted(os.listdir(tmp_path)) == ["needed", "q"]


@pytest.mark.parametrize("name", ["manifest.json", "decoder.onnx", "vision.onnx.data"])
def test_a_source_that_changes_is_named_and_no_stage_of_the_mixture_is_kept(source, tmp_path, name):
    own = shutil.copytree(source, tmp_path / "own")
    changed = []

    def change(done, total, stage):
        if done == 3:
            path = own / name
            path.with_name("new").write_bytes(path.read_bytes())
            path.with_name("new").replace(path)
            changed.append(stage)

    with pytest.raises(ValueError, match=rf"{name} changed while it was read"):
        run(own, tmp_path / "q", progress=change)
    assert changed
    assert not (tmp_path / "q").exists()
    (work,) = tmp_path.glob(".q.quantize-*")
    stages = {path.name for path in work.iterdir()}
    assert stages == {"vision.visual.blocks.0", "vision.visual.blocks.1"}


def test_a_source_that_changes_while_the_bundle_is_written_is_named(source, tmp_path):
    own = shutil.copytree(source, tmp_path / "own")

    def change(num_bytes):
        (own / "tokenizer.json").touch()

    with pytest.raises(ValueError, match=r"tokenizer\.json changed while it was read"):
        run(own, tmp_path / "q", advance=change)
    assert not (tmp_path / "q").exists()


def test_a_picture_that_changes_after_it_was_hashed_is_named(source, question_folder, tmp_path):
    folder = shutil.copytree(question_folder, tmp_path / "questions")
    data = open_data(str(folder))
    shutil.copy(folder / "b.png", folder / "new.png")
    (folder / "new.png").replace(folder / "a.png")
    recipe = RECIPE.replace("int8-weight", "int8")
    with pytest.raises(ValueError, match=r"a\.png changed while it was read"):
        run(source, tmp_path / "q", recipe, data=data)
    assert os.listdir(tmp_path) == ["questions"]


def test_other_graphs_with_the_same_weights_find_none_of_its_stages(source, tmp_path):
    def stop(done, total, stage):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "q", progress=stop)
    own = shutil.copytree(source, tmp_path / "own")
    graph = onnx.load(own / "vision.onnx", load_external_data=False)
    graph.doc_string = "another"
    (own / "vision.onnx").unlink()
    record = write_small(own / "vision.onnx", graph.SerializeToString())
    manifest = read_manifest(source)
    manifest.files["vision.onnx"] = record
    (own / "manifest.json").write_text(to_json(manifest))
    assert run(own, tmp_path / "q").resumed == 0


@pytest.mark.parametrize("place", [".", "..", "new", "new/er"])
def test_a_bundle_is_not_replaced_by_what_is_made_of_it(source, tmp_path, place):
    own = shutil.copytree(source, tmp_path / "own")
    (own / place).parent.mkdir(exist_ok=True)
    before = sorted(os.listdir(own))
    with pytest.raises(ValueError, match="what is read"):
        run(own, own / place)
    assert sorted(os.listdir(own)) == before
