"""Which of a checkpoint's weights are read; transformers 5.24 on the same folder is the oracle."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.graphs.weights import float_weight

INDEX = "model.safetensors.index.json"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def single(checkpoint):
    """The tiny checkpoint as one file, and a function that rewrites it."""
    tensors = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (checkpoint / INDEX).unlink()

    def write(change=lambda tensors: tensors, name="model.safetensors"):
        changed = {n: t.clone().contiguous() for n, t in change(dict(tensors)).items()}
        save_file(changed, checkpoint / name, metadata={"format": "pt"})
        return changed

    write()
    return checkpoint, write


def write_index(folder, tensors, shard, extra=()):
    names = dict.fromkeys([*tensors, *extra], shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def edit_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def load_theirs(folder):
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.state_dict()


def read_ours(source):
    return torch.cat(
        [
            torch.from_numpy(block.encode()[0].copy()).reshape(-1)
            for block in float_weight("x", (source,), "fp32").blocks()
        ]
    ).reshape(source.shape)


def assert_as_transformers(folder):
    opened, theirs = open_checkpoint(folder), load_theirs(folder)
    ours = dict(opened.tensors)
    if opened.spec.tied_lm_head:
        ours[HEAD] = ours[TABLE]
    for name, source in ours.items():
        new = re.sub(r"^visual\.", "model.visual.", name)
        new = re.sub(r"^model\.(?!visual\.)", "model.language_model.", new)
        assert torch.equal(read_ours(source), theirs[new]), name
    return opened


def roll(tensors, name=TABLE):
    return tensors | {name: tensors[name].roll(1, 0)}


def test_a_single_file_and_shards_that_differ_are_refused(single):
    folder, write = single
    shard = write(roll, "model-00001-of-00001.safetensors")
    write_index(folder, shard, "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=rf"two different models.*{TABLE}; remove model\.safet"):
        open_checkpoint(folder)


def test_a_single_file_that_has_more_than_the_shards_is_refused(single):
    folder, write = single

    def drop(tensors):
        del tensors["model.norm.weight"]
        return tensors

    shard = write(drop, "model-00001-of-00001.safetensors")
    write_index(folder, shard, "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"differ in model\.norm\.weight"):
        open_checkpoint(folder)


def test_the_single_file_is_read_where_shards_hold_the_same(single):
    folder, write = single
    shard = write(name="model-00001-of-00001.safetensors")
    write_index(folder, shard, "model-00001-of-00001.safetensors", [HEAD])
    assert set(assert_as_transformers(folder).source_files) == {"config.json", "model.safetensors"}


def test_the_single_file_is_read_where_the_shards_of_an_index_are_gone(single):
    folder, write = single
    write_index(folder, write(), "model-00001-of-00002.safetensors")
    assert_as_transformers(folder)


def test_an_index_may_list_a_tied_head_that_no_shard_holds(single):
    folder, write = single
    tensors = write()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_index(folder, tensors, "model-00001-of-00001.safetensors", [HEAD])
    assert_as_transformers(folder)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "adapter_model.safetensors"])
def test_other_weight_files_beside_the_models_own_have_no_effect(single, name):
    folder, write = single
    write(roll, name)
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert_as_transformers(folder)


def test_a_stored_head_that_differs_from_the_tied_embeddings_is_used_and_told(single):
    folder, write = single
    write(lambda tensors: tensors | {HEAD: tensors[TABLE].roll(1, 0)})
    opened = assert_as_transformers(folder)
    assert not opened.spec.tied_lm_head
    (remark,) = opened.remarks
    assert "differs from the embeddings" in remark


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_stored_head_equal_to_the_tied_embeddings_stays_tied(single, dtype):
    folder, write = single
    write(lambda tensors: tensors | {HEAD: tensors[TABLE].to(dtype)})
    opened = assert_as_transformers(folder)
    assert opened.spec.tied_lm_head
    assert opened.remarks == ()


def test_a_tied_head_stored_without_the_embeddings_is_both(single):
    folder, write = single

    def swap(tensors):
        tensors[HEAD] = tensors.pop(TABLE)
        return tensors

    write(swap)
    assert assert_as_transformers(folder).spec.tied_lm_head


def test_an_untied_head_that_is_not_stored_is_refused(single):
    folder, _ = single
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"no lm_head\.weight is stored.*random"):
        open_checkpoint(folder)


def test_stored_rotary_frequencies_have_no_effect_in_transformers_either(single):
    folder, write = single
    wrong = torch.zeros(8)
    names = ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq")
    write(lambda tensors: tensors | dict.fromkeys(names, wrong))
    assert_as_transformers(folder)
    buffers = dict(Qwen2VLForConditionalGeneration.from_pretrained(folder).named_buffers())
    assert buffers["model.language_model.rotary_emb.inv_freq"].abs().max() == 1


@pytest.mark.parametrize(
    ("pattern", "new"),
    [
        (r"^model\.", "model.model."),
        (r"^model\.", "language_model."),
        (r"^", "model."),
        (r"^model\.", "model.language_model."),
    ],
)
def test_prefixes_that_transformers_reads_are_read(single, pattern, new):
    folder, write = single
    write(lambda tensors: {re.sub(pattern, new, n): t for n, t in tensors.items()})
    assert_as_transformers(folder)


@pytest.mark.parametrize(
    ("pattern", "new", "named"),
    [
        (r"^", "module.", "save model.module"),
        (r"^", "_orig_mod.", "save model._orig_mod"),
        (r"^", "base_model.model.", "merge_and_unload"),
        (r"^", "thinker.", "without 'thinker.'"),
        (r"^model\.", "language_model.model.", "rename them"),
        (r"^model\.layers\.(\d+)\.", r"model.layers.\1._orig_mod.", "save model._orig_mod"),
    ],
)
def test_prefixes_that_transformers_does_not_read_are_named_in_one_line(
    single, pattern, new, named
):
    folder, write = single
    write(lambda tensors: {re.sub(pattern, new, n): t for n, t in tensors.items()})
    with pytest.raises(ValueError, match="random weights") as error:
        open_checkpoint(folder)
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500
    _, info = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"]


def test_an_unmerged_peft_model_is_named(single):
    folder, write = single

    def wrap(tensors):
        name = "model.layers.0.self_attn.q_proj"
        tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
        return tensors

    write(wrap)
    with pytest.raises(ValueError, match="unmerged PEFT model"):
        open_checkpoint(folder)


def test_a_single_file_may_be_a_symbolic_link(single):
    folder, _ = single
    shutil.move(folder / "model.safetensors", folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(folder.parent / "blob")
    assert_as_transformers(folder)
