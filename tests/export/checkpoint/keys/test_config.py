"""Every key of the config classes: read as transformers reads it, refused, or without effect."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.configuration_qwen2_vl import (
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)

from vlmedge.export.checkpoint.config import find_model_spec, read_model_spec
from vlmedge.export.checkpoint.keys.config import RULES, SECTION, TEXT_SECTION, VISION_SECTION

SAMPLES = Path(__file__).parents[4] / "samples"


@pytest.fixture
def reader(tmp_path):
    return shutil.copytree(SAMPLES / "reader", tmp_path / "reader")


def nest(config):
    """As transformers 5 saves it."""
    text = {f.name for f in dataclasses.fields(Qwen2VLTextConfig)} | {"rope_scaling", "rope_theta"}
    inner = {key: value for key, value in config.items() if key in text}
    outer = {key: value for key, value in config.items() if key not in text}
    return outer | {"text_config": inner | {"model_type": "qwen2_vl_text"}}


def edit(reader, section, changes, *, nested):
    path = reader / "config.json"
    config = json.loads(path.read_text())
    config = nest(config) if nested else config
    part = config
    if section == VISION_SECTION:
        part = config["vision_config"]
    if section == TEXT_SECTION and nested:
        part = config["text_config"]
    for key, value in changes.items():
        if value is ...:
            part.pop(key, None)
        else:
            part[key] = value
    path.write_text(json.dumps(config))
    return reader


def assert_read_as_transformers(reader):
    spec, config = read_model_spec(reader), Qwen2VLConfig.from_pretrained(reader)
    text, vision = config.text_config, config.vision_config
    decoder = spec.decoder
    assert (decoder.num_layers, decoder.hidden_size, decoder.num_heads, decoder.num_kv_heads) == (
        text.num_hidden_layers,
        text.hidden_size,
        text.num_attention_heads,
        text.num_key_value_heads,
    )
    assert (decoder.vocab_size, spec.decoder_mlp_size, spec.rms_norm_eps, spec.rope.theta) == (
        text.vocab_size,
        text.intermediate_size,
        text.rms_norm_eps,
        text.rope_parameters["rope_theta"],
    )
    assert decoder.max_position_embeddings == text.max_position_embeddings
    assert list(spec.rope.mrope_section) == text.rope_parameters.get("mrope_section", [16, 24, 24])
    assert spec.tied_lm_head == config.tie_word_embeddings
    ours, tokens = spec.vision, spec.tokens
    assert dataclasses.astuple(ours) == (
        vision.depth,
        vision.embed_dim,
        vision.num_heads,
        vision.patch_size,
        vision.temporal_patch_size,
        vision.spatial_merge_size,
    )
    assert spec.vision_mlp_size == int(vision.embed_dim * vision.mlp_ratio)
    assert (tokens.vision_start, tokens.vision_end, tokens.image_pad, tokens.video_pad) == (
        config.vision_start_token_id,
        config.vision_end_token_id,
        config.image_token_id,
        config.video_token_id,
    )


CHANGED = {
    TEXT_SECTION: {
        "vocab_size": 500,
        "hidden_size": 384,
        "intermediate_size": 77,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 999,
        "rms_norm_eps": 1e-4,
        "rope_theta": 77.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [10, 2, 4]},
        "rope_parameters": {"rope_theta": 5.0, "mrope_section": [10, 2, 4]},
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "layer_types": ["full_attention"] * 4,
        "head_dim": 32,
        "pad_token_id": 3,
        "original_max_position_embeddings": 12,
    },
    VISION_SECTION: {
        "depth": 2,
        "embed_dim": 96,
        "num_heads": 3,
        "mlp_ratio": 3,
        "patch_size": 16,
        "spatial_merge_size": 3,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "in_chans": 3,
        "hidden_act": "quick_gelu",
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
    },
    SECTION: {
        "image_token_id": 470,
        "video_token_id": 471,
        "vision_start_token_id": 472,
        "vision_end_token_id": 473,
        "tie_word_embeddings": False,
    },
}
CASES = [(section, key) for section, changes in CHANGED.items() for key in changes]


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(("section", "key"), CASES, ids=lambda value: value.split(": ")[-1])
def test_a_changed_value_is_read_as_transformers_reads_it(reader, section, key, nested):
    changes = {key: CHANGED[section][key]}
    if key == "hidden_size":  # heads of 64 channels
        changes["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 8, 8]}
        edit(reader, VISION_SECTION, {"hidden_size": 384}, nested=False)
    if key == "rope_parameters":
        changes["rope_scaling"] = None
    assert_read_as_transformers(edit(reader, section, changes, nested=nested))


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_what_older_versions_left_out_has_the_defaults_of_the_class(reader, nested):
    """Of the 7B and 72B most values are the class's own; the ViT's nearly always."""
    kept = {"in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14, "hidden_size": 1024}
    path = reader / "config.json"
    config = {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if key in ("model_type", "architectures", "image_token_id", "eos_token_id")
    }
    config |= {"vision_config": kept, "hidden_size": 1024, "num_attention_heads": 8}
    config["intermediate_size"] = 2048
    path.write_text(json.dumps(nest(config) if nested else config))
    assert_read_as_transformers(reader)
    spec = read_model_spec(reader)
    assert (spec.vision.depth, spec.vision.embed_dim, spec.decoder.num_kv_heads) == (32, 1280, 8)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(
    ("key", "section"),
    [("num_key_value_heads", TEXT_SECTION), ("quantization_config", SECTION)],
)
def test_nulls_are_read_as_transformers_reads_them(reader, key, section, nested):
    assert_read_as_transformers(edit(reader, section, {key: None}, nested=nested))


@pytest.mark.parametrize("key", ["hidden_act", "max_position_embeddings", "rms_norm_eps"])
def test_nulls_that_transformers_rejects_count_as_absent(reader, key):
    absent = read_model_spec(edit(reader, TEXT_SECTION, {key: ...}, nested=False))
    assert read_model_spec(edit(reader, TEXT_SECTION, {key: None}, nested=False)) == absent


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (TEXT_SECTION, "use_sliding_window", True),
        (TEXT_SECTION, "partial_rotary_factor", 0.5),
        (TEXT_SECTION, "is_encoder_decoder", True),
        (TEXT_SECTION, "add_cross_attention", True),
        (TEXT_SECTION, "pruned_heads", {"0": [1]}),
        (TEXT_SECTION, "hidden_act", "gelu"),
        (TEXT_SECTION, "head_dim", 64),
        (TEXT_SECTION, "layer_types", ["sliding_attention"] * 4),
        (VISION_SECTION, "hidden_act", "gelu"),
        (VISION_SECTION, "in_channels", 4),
        (VISION_SECTION, "temporal_patch_size", 1),
        (VISION_SECTION, "hidden_size", 7),
        (VISION_SECTION, "rope_parameters", {"rope_theta": 3.0}),
        (VISION_SECTION, "rope_theta", 5.0),
        (VISION_SECTION, "rope_scaling", {"rope_type": "axial", "rope_theta": 5.0}),
        (VISION_SECTION, "num_attention_heads", 2),
        (VISION_SECTION, "num_hidden_layers", 1),
        (VISION_SECTION, "head_dim", 8),
        (VISION_SECTION, "is_causal", True),
        (TEXT_SECTION, "is_causal", False),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_what_can_not_be_followed_is_refused_by_name(reader, section, key, value, nested):
    with pytest.raises(ValueError, match=r"activation" if key == "hidden_act" else key):
        read_model_spec(edit(reader, section, {key: value}, nested=nested))


WITHOUT_EFFECT = {
    "attention_dropout": 0.5,
    "initializer_range": 9.0,
    "use_cache": False,
    "sliding_window": 3,
    "max_window_layers": 1,
    "bos_token_id": 5,
    "output_attentions": True,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "problem_type": "regression",
    "id2label": {"0": "x"},
    "label2id": {"x": 0},
    "return_dict": True,
    "transformers_version": "9.9",
    "_name_or_path": "somewhere/else",
    "attn_implementation": "eager",
    "dtype": "float16",
    "is_decoder": True,
}


def test_keys_without_effect_change_no_logits_of_transformers(reader):
    def compute():
        model = Qwen2VLForConditionalGeneration.from_pretrained(reader, dtype=torch.float32).eval()
        with torch.inference_mode():
            return model(input_ids=torch.tensor([[3, 14, 15, 92]])).logits.numpy()

    before, spec = compute(), read_model_spec(reader)
    edit(reader, TEXT_SECTION, WITHOUT_EFFECT, nested=True)
    np.testing.assert_allclose(compute(), before, rtol=0, atol=1e-5)  # eager sums otherwise
    assert read_model_spec(reader) == spec
    treatments = {r.key: r.treatment for r in RULES if r.section == TEXT_SECTION}
    assert {treatments[key] for key in WITHOUT_EFFECT} == {"no effect"}


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (SECTION, Qwen2VLConfig),
        (TEXT_SECTION, Qwen2VLTextConfig),
        (VISION_SECTION, Qwen2VLVisionConfig),
    ],
)
def test_every_key_that_transformers_knows_has_a_rule(section, kind):
    rules = {rule.key for rule in RULES if rule.section == section}
    known = {
        field.name for field in (*dataclasses.fields(kind), *dataclasses.fields(PretrainedConfig))
    }
    saved = set(kind().to_dict())
    assert known | saved <= rules
    honoured = {r.key for r in RULES if r.section == section and r.treatment == "honoured"}
    elsewhere = {"model_type", "eos_token_id", "text_config", "vision_config", "hidden_size"}
    packed = {"quantization_config", "compression_config", "pad_token_id", "rope_parameters"}
    assert honoured <= set(CHANGED[section]) | elsewhere | packed


def test_unknown_keys_are_remarked_and_known_ones_are_not(reader):
    assert find_model_spec(reader).unusual == ()
    edit(reader, TEXT_SECTION, {"use_flash": True, "my_key": None}, nested=True)
    assert find_model_spec(reader).unusual == (
        "config.json: text_config: unknown to transformers: use_flash",
    )


def test_another_file_of_weights_that_transformers_would_load_is_refused(reader):
    edit(reader, SECTION, {"transformers_weights": "other.safetensors"}, nested=False)
    with pytest.raises(ValueError, match="transformers_weights is 'other"):
        read_model_spec(reader)


def test_the_outer_end_token_wins_over_the_decoders_as_in_transformers(reader):
    (reader / "generation_config.json").unlink()
    edit(reader, TEXT_SECTION, {"eos_token_id": 7}, nested=True)
    path = reader / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 5}))
    model = Qwen2VLForConditionalGeneration.from_pretrained(reader)
    assert read_model_spec(reader).tokens.eos == (model.generation_config.eos_token_id,) == (5,)
