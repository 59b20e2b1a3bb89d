"""Every way a checkpoint's tensors may not fit its config, and every place they may lie."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from vlmedge.export.checkpoint.open import find_folder, open_checkpoint
from vlmedge.export.checkpoint.shapes import expected_shapes
from vlmedge.export.graphs.weights import float_weight

INDEX = "model.safetensors.index.json"


def merge(folder, change):
    """Make the shards one file, after `change` has edited the tensors."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / INDEX).unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_shards_and_a_single_file_hold_the_same_tensors(checkpoint, read_only_checkpoint):
    merge(checkpoint, lambda tensors: None)
    single, sharded = open_checkpoint(checkpoint), open_checkpoint(read_only_checkpoint())
    assert set(single.tensors) == set(sharded.tensors) == set(expected_shapes(single.spec))
    assert set(single.source_files) == {"config.json", "model.safetensors"}
    assert len(sharded.source_files) == 3
    for name, tensor in single.tensors.items():
        same = sharded.tensors[name]
        (ours,), (theirs,) = (
            next(iter(float_weight(name, (source,), "fp32").blocks())).encode()
            for source in (tensor, same)
        )
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
def test_what_transformers_saves_is_read_under_the_hubs_names(read_only_checkpoint, tmp_path, size):
    folder = read_only_checkpoint(size)
    Qwen2VLForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path)
    ours, saved = open_checkpoint(folder), open_checkpoint(tmp_path)
    assert set(ours.tensors) == set(saved.tensors)


def test_names_of_transformers_5_modules_are_read_as_the_hubs(checkpoint):
    def rename(tensors):
        for name in list(tensors):
            new = re.sub(r"^model\.", "model.language_model.", name)
            new = re.sub(r"^visual\.", "model.visual.", new)
            tensors[new] = tensors.pop(name)

    merge(checkpoint, rename)
    opened = open_checkpoint(checkpoint)
    assert set(opened.tensors) == set(expected_shapes(opened.spec))


def test_missing_extra_and_misshapen_tensors_are_all_named_in_one_error(checkpoint):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        del tensors["visual.blocks.1.attn.qkv.bias"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros(3, np.float32)
        tensors["model.embed_tokens.weight"] = np.zeros((319, 64), np.float32)
        tensors["visual.merger.ln_q.weight"] = np.zeros(32, np.float64)

    merge(checkpoint, spoil)
    with pytest.raises(ValueError, match="don't fit its config") as error:
        open_checkpoint(checkpoint)
    text = str(error.value)
    assert "missing 2 tensors: visual.blocks.1.attn.qkv.bias, model.norm.weight" in text
    assert "not part of the model 1 tensors: model.layers.7.mlp.up_proj.weight" in text
    assert "model.embed_tokens.weight is [319, 64], the config needs [320, 64]" in text
    assert "visual.merger.ln_q.weight is F64" in text


def test_one_tensor_under_both_names_is_refused(checkpoint):
    def double(tensors):
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"].copy()

    merge(checkpoint, double)
    with pytest.raises(ValueError, match=r"norm\.weight' is there twice"):
        open_checkpoint(checkpoint)


def test_a_tied_head_saved_beside_the_embeddings_and_computed_buffers_are_left_out(checkpoint):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)

    merge(checkpoint, add)
    assert open_checkpoint(checkpoint).spec.tied_lm_head


def test_an_index_that_does_not_fit_its_shards_is_named(checkpoint):
    edit_index(checkpoint, lambda index: index["weight_map"].pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"disagree about: 1 tensors: model\.norm\.weight"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_that_points_elsewhere_is_refused(checkpoint, name):
    edit_index(checkpoint, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(ValueError, match="no plain file name"):
        open_checkpoint(checkpoint)


def test_a_missing_shard_is_named(checkpoint):
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors can't be read"):
        open_checkpoint(checkpoint)


def test_a_truncated_shard_is_named(checkpoint):
    path = checkpoint / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00002-of-00002.*truncated"):
        open_checkpoint(checkpoint)


def test_pytorch_files_are_not_read_and_said_so(checkpoint):
    for path in [*checkpoint.glob("*.safetensors"), checkpoint / INDEX]:
        path.unlink()
    (checkpoint / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"\.bin files are not read"):
        open_checkpoint(checkpoint)


def test_the_hub_caches_symbolic_links_are_followed(checkpoint, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for i, path in enumerate(sorted(checkpoint.iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(blobs / str(i))
    opened = open_checkpoint(snapshot)
    assert opened.name == "snapshot"
    assert all(path.is_file() for path in opened.source_files.values())


def test_a_hub_id_goes_to_the_hubs_client(checkpoint, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    opened = open_checkpoint("Qwen/Qwen2-VL-2B-Instruct")
    assert opened.name == "Qwen/Qwen2-VL-2B-Instruct"
    assert asked[0][0] == "Qwen/Qwen2-VL-2B-Instruct"
    assert "*.safetensors" in asked[0][1]
    assert not any("bin" in pattern for pattern in asked[0][1])


def test_a_hub_id_that_can_not_be_fetched_is_one_line(monkeypatch):
    import huggingface_hub

    def snapshot_download(repo, allow_patterns):
        raise ConnectionError("no route\nand a page of advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"could not be fetched: no route$"):
        find_folder("someone/something")


@pytest.mark.parametrize("name", ["no/such/folder", "nothing", "", "../x"])
def test_neither_directory_nor_hub_id_is_said(name):
    with pytest.raises(ValueError, match=r"neither a directory nor a hub id|is missing"):
        open_checkpoint(name)
