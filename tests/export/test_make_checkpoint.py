"""The random checkpoint is what it says: a real one's shape, the same bytes for a seed."""

import hashlib
import json

import numpy as np
import pytest
from checkpoint_processor import make_tokenizer, special_ids
from safetensors import safe_open
from tokenizers import Tokenizer

from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.checkpoint.shapes import expected_shapes
from vlmedge.export.graphs.weights import to_float32


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_others(
    tmp_path, checkpoint_script, monkeypatch
):
    make = checkpoint_script.make_checkpoint
    first, second = digests(make(tmp_path / "a", seed=3)), digests(make(tmp_path / "b", seed=3))
    assert first == second
    other = digests(make(tmp_path / "c", seed=4))
    differing = {name for name in first if first[name] != other[name]}
    assert differing == {name for name in first if name.endswith(".safetensors")}


def test_the_safetensors_library_reads_the_shards(read_only_checkpoint):
    folder = read_only_checkpoint("tiny-7b")
    spec = open_checkpoint(folder).spec
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shapes = expected_shapes(spec)
    assert set(index["weight_map"]) == set(shapes)
    assert "lm_head.weight" in shapes
    for name, file_name in index["weight_map"].items():
        with safe_open(folder / file_name, "np") as file:
            assert tuple(file.get_slice(name).get_shape()) == shapes[name]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_weights_have_the_scale_that_keeps_activations_near_one(read_only_checkpoint, dtype):
    tensors = open_checkpoint(read_only_checkpoint(dtype=dtype)).tensors
    tensor = tensors["model.layers.0.mlp.up_proj.weight"]
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        raw = np.frombuffer(file.read(tensor.nbytes), np.float32 if dtype == "F32" else np.uint16)
    values = to_float32(raw, dtype)
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(64**-0.5, rel=0.05)


def test_the_2b_tokenizer_has_the_real_special_ids():
    ids = special_ids(151936)
    tokenizer = Tokenizer.from_str(json.dumps(make_tokenizer(ids)))
    assert tokenizer.token_to_id("<|endoftext|>") == 151643
    assert tokenizer.token_to_id("<|vision_start|>") == 151652
    assert tokenizer.token_to_id("<|image_pad|>") == 151655
    assert tokenizer.token_to_id("<|video_pad|>") == 151656
    assert tokenizer.encode("<|im_start|>a<|im_end|>").ids == [151644, ord("a"), 151645]


@pytest.mark.parametrize("text", ["Hello, world!", "값은 얼마? 42 €\n\t~", "\x00\x7f\xad"])
def test_any_text_goes_through_the_tokenizer_and_back(read_only_checkpoint, text):
    tokenizer = Tokenizer.from_file(str(read_only_checkpoint() / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    assert max(ids) < 256
    assert tokenizer.decode(ids) == text
