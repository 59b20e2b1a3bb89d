"""config.json in both layouts, and refusals that name what is supported."""

import json

import pytest
from transformers import AutoConfig

from vlmedge.export.checkpoint.config import read_model_spec


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def test_nested_layout_of_transformers_5_gives_the_same_spec_as_the_hubs_flat_one(
    checkpoint, tmp_path
):
    flat = read_model_spec(checkpoint)
    nested_folder = tmp_path / "nested"
    AutoConfig.from_pretrained(checkpoint).save_pretrained(nested_folder)
    assert "text_config" in json.loads((nested_folder / "config.json").read_text())
    generation = (checkpoint / "generation_config.json").read_bytes()
    (nested_folder / "generation_config.json").write_bytes(generation)
    assert read_model_spec(nested_folder) == flat


def test_the_2b_config_has_the_published_sizes(tmp_path, checkpoint_script):
    size = checkpoint_script.SIZES["2b"]
    config = checkpoint_script.make_config(size, "BF16")
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_model_spec(tmp_path)
    assert (spec.decoder.head_dim, spec.vision_mlp_size, spec.merged_size) == (128, 5120, 5120)
    assert spec.frame_patch_size == 588
    assert spec.rope.mrope_section == (16, 24, 24)
    assert spec.tied_lm_head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, r"'llava'.*supported: Qwen2-VL"),
        ({"model_type": "qwen2_5_vl"}, r"unsupported architecture.*qwen2_5_vl"),
        ({"use_sliding_window": True}, "attention windows are not supported"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"hidden_size": ...}, "the decoder's is 8192"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 66}, "must divide"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, an integer of 1 to 1024"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"rope_scaling": None}, "the sum 8 are needed"),
        ({"rope_scaling": {"type": "dynamic", "mrope_section": [2, 3, 3]}}, "'dynamic' is not"),
        ({"rope_scaling": {"type": "mrope"}}, "the sum 8 are needed"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 3, 3]}}, "the sum 8 are needed"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"vision_config": None}, "vision_config is None"),
        ({"vision_config": {"depth": 2, "embed_dim": 30}}, "must be a multiple of 4 \\* 16 heads"),
    ],
)
def test_what_is_not_supported_is_named(checkpoint, changes, message):
    edit(checkpoint, **changes)
    with pytest.raises(ValueError, match=message):
        read_model_spec(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 36}, "multiple of 4"),
        ({"hidden_act": "silu"}, "only 'quick_gelu'"),
        ({"in_chans": 1}, "RGB"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ({"hidden_size": 128}, "vision hidden_size is 128"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "only axial at 10000"),
    ],
)
def test_what_is_not_supported_of_the_vit_is_named(checkpoint, changes, message):
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    edit(checkpoint, vision_config=vision | changes)
    with pytest.raises(ValueError, match=message):
        read_model_spec(checkpoint)


@pytest.mark.parametrize("text", ["", "[]", "{", "\udcff"])
def test_a_config_that_is_no_json_object_is_named(checkpoint, text):
    (checkpoint / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json"):
        read_model_spec(checkpoint)


def test_a_folder_without_config_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"is missing: is .* a Hugging Face checkpoint"):
        read_model_spec(tmp_path)


def test_ids_that_end_an_answer_come_from_the_generation_config(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert read_model_spec(checkpoint).tokens.eos == (7,)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": null}')
    assert read_model_spec(checkpoint).tokens.eos == (
        json.loads((checkpoint / "config.json").read_text())["eos_token_id"],
    )
    (checkpoint / "generation_config.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    assert read_model_spec(checkpoint).tokens.eos == (config["eos_token_id"],)
    edit(checkpoint, eos_token_id=...)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    (end,) = [t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|im_end|>"]
    named = {"eos_token": {"content": "<|im_end|>", "lstrip": False}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(named))
    assert read_model_spec(checkpoint).tokens.eos == (end,)
    (checkpoint / "tokenizer_config.json").write_text('{"eos_token": null}')
    with pytest.raises(ValueError, match="eos_token_id is None"):
        read_model_spec(checkpoint)


def test_an_end_token_beyond_the_vocabulary_is_refused(checkpoint):
    vocab_size = read_model_spec(checkpoint).decoder.vocab_size
    (checkpoint / "generation_config.json").write_text(f'{{"eos_token_id": [7, {vocab_size}]}}')
    with pytest.raises(ValueError, match=f"a token id under {vocab_size}"):
        read_model_spec(checkpoint)


def test_tying_is_said_by_true_and_false_only(checkpoint):
    edit(checkpoint, tie_word_embeddings=True)
    assert read_model_spec(checkpoint).tied_lm_head
    edit(checkpoint, tie_word_embeddings="no")
    with pytest.raises(ValueError, match="tie_word_embeddings is 'no'"):
        read_model_spec(checkpoint)
