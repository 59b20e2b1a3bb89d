"""A checkpoint or bundle that changes while it is exported gives an error, never a mixture."""

import os
import shutil
from pathlib import Path

import pytest

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.runtime.bundle.manifest_file import read_manifest

TARGET = LoweringOptions("jetpack-6.2", "fp32")
NAMES = ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors")


def touch(path):
    """Write the same bytes again, a moment later; whoever reads meanwhile sees nothing else."""
    before = path.stat()
    with path.open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace(path):
    """Put another file of the same bytes in its place, as a download does."""
    shutil.copy2(path, path.with_name("new"))
    path.with_name("new").replace(path)


def once(change, path):
    """A progress callback that changes a file half-way."""
    done = []

    def progress(count, total, name):
        if not done:
            done.append(name)
            change(path)

    return progress


@pytest.mark.parametrize("change", [touch, replace, os.unlink])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_changes_is_named_and_the_old_bundle_stays(
    checkpoint, tmp_path, name, change
):
    target = tmp_path / "bundle"
    before = export_checkpoint(checkpoint, target)
    with pytest.raises((ValueError, OSError)) as error:
        export_checkpoint(checkpoint, target, progress=once(change, checkpoint / name))
    assert name in str(error.value)
    if change is not os.unlink:  # a file that is gone may be missed where it is read
        assert f"{checkpoint / name} changed while it was read" in str(error.value)
    assert read_manifest(target) == before
    assert sorted(os.listdir(tmp_path)) == ["bundle", "checkpoint"]


def test_a_template_that_appears_is_a_change(checkpoint, tmp_path):
    progress = once(Path.touch, checkpoint / "chat_template.jinja")
    with pytest.raises(ValueError, match="it was not there before"):
        export_checkpoint(checkpoint, tmp_path / "bundle", progress=progress)
    assert not (tmp_path / "bundle").exists()


def test_a_checkpoint_that_changes_while_it_is_lowered(checkpoint, tmp_path):
    progress = once(touch, checkpoint / NAMES[-1])
    with pytest.raises(ValueError, match="changed while it was read"):
        export_for_target(checkpoint, tmp_path / "bundle", TARGET, progress)
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("name", ["manifest.json", "decoder.onnx", "decoder.onnx.data"])
def test_a_bundle_that_changes_while_it_is_lowered(make_bundle, tmp_path, name):
    source = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "source")
    with pytest.raises(ValueError, match=f"{name} changed while it was read"):
        export_for_target(source, tmp_path / "bundle", TARGET, once(touch, source / name))
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("options", [(export_checkpoint,), (export_for_target, TARGET)])
@pytest.mark.parametrize("place", [".", "..", "new", "new/er"])
def test_a_bundle_never_takes_the_place_of_its_source(checkpoint, options, place):
    export, *rest = options
    target = checkpoint / place
    target.parent.mkdir(exist_ok=True)
    before = sorted(os.listdir(checkpoint))
    with pytest.raises(ValueError, match="what is read"):
        export(checkpoint, target, *rest)
    assert sorted(os.listdir(checkpoint)) == before


def test_links_to_the_checkpoints_files_are_no_change(checkpoint, tmp_path):
    options = LoweringOptions("jetpack-6.2", "bf16", link_weights=True)
    made = export_for_target(checkpoint, tmp_path / "bundle", options)
    assert read_manifest(tmp_path / "bundle") == made
