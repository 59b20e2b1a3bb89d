"""The rule of each key of config.json and of its text and vision parts; see `rules.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .generation import RULES as GENERATION_RULES
from .rules import KeyRule, Treatment, check_keys

SECTION = "config.json"
TEXT_SECTION = "config.json: text_config"
VISION_SECTION = "config.json: vision_config"

_SIZE = "a size of the model, held against the tensors"
_TOKEN = "an id that the host places or looks for"
_TRAINING = "about training"
_OUTPUT = "about the form of what transformers returns"
_NAMES = "names a class, a version or where it came from"
_KIND = "how transformers computes attention"
_Rules = dict[str, tuple[Treatment, str, tuple]]

# Of every config class
_COMMON: _Rules = {
    **{
        key: ("no effect", _NAMES, ())
        for key in (
            *("architectures", "transformers_version", "_name_or_path", "name_or_path"),
            *("auto_map", "tokenizer_class", "processor_class"),
        )
    },
    **{
        key: ("no effect", _OUTPUT, ())
        for key in (
            *("output_attentions", "output_hidden_states", "return_dict", "torchscript"),
            *("id2label", "label2id", "num_labels", "problem_type", "use_return_dict"),
        )
    },
    **{
        key: ("no effect", _TRAINING, ())
        for key in ("initializer_range", "gradient_checkpointing", "use_bfloat16")
    },
    **{
        key: ("no effect", _KIND, ())
        for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_autoset")
    },
    "model_type": ("honoured", "must be qwen2_vl, or that of its parts", ()),
    "dtype": ("no effect", "weights are read as they are stored", ()),
    "torch_dtype": ("no effect", "weights are read as they are stored", ()),
    "is_encoder_decoder": ("refused", "Qwen2-VL is a decoder", (False,)),
    "is_decoder": ("no effect", "Qwen2-VL is a decoder", ()),
    "add_cross_attention": ("refused", "Qwen2-VL has no cross attention", (False,)),
    "cross_attention_hidden_size": ("no effect", "Qwen2-VL has no cross attention", ()),
    "chunk_size_feed_forward": ("no effect", "how transformers batches", ()),
    "pruned_heads": ("refused", "pruned heads are not supported", ({},)),
    "tie_encoder_decoder": ("no effect", "Qwen2-VL has no encoder", ()),
}
_TEXT: _Rules = {
    **_COMMON,
    **{
        key: ("honoured", _SIZE, ())
        for key in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads"),
        )
    },
    "head_dim": ("honoured", "must be hidden_size over num_attention_heads", ()),
    "max_position_embeddings": ("honoured", "the context; YaRN and Llama 3 stretch it", ()),
    "original_max_position_embeddings": ("honoured", "of stretched positions", ()),
    "rms_norm_eps": ("honoured", "of every norm of the decoder", ()),
    "rope_theta": ("honoured", "base of the frequencies", ()),
    "rope_scaling": ("honoured", "M-RoPE's sections; linear, YaRN and Llama 3", ()),
    "rope_parameters": ("honoured", "the same under its newer name", ()),
    "partial_rotary_factor": ("refused", "heads that turn in part are not supported", (1,)),
    "tie_word_embeddings": ("honoured", "whether the lm_head is the embedding table", ()),
    "hidden_act": ("honoured", "must be silu", ()),
    "use_sliding_window": ("refused", "attention windows are not supported", (False,)),
    "sliding_window": ("no effect", "without use_sliding_window it is not read", ()),
    "max_window_layers": ("no effect", "without use_sliding_window it is not read", ()),
    "layer_types": ("honoured", "must be full_attention in every layer", ()),
    "eos_token_id": ("honoured", "where generation_config.json names none", ()),
    "pad_token_id": ("honoured", "where generation_config.json names none", ()),
    "bos_token_id": ("no effect", "prompts begin without one", ()),
    "use_cache": ("no effect", "the runtime always keeps keys and values", ()),
    "attention_dropout": ("no effect", _TRAINING, ()),
    "is_causal": ("refused", "a decoder that looks ahead is not supported", (True,)),
}
_VISION: _Rules = {
    **_COMMON,
    **{
        key: ("honoured", _SIZE, ())
        for key in (
            *("depth", "embed_dim", "num_heads", "mlp_ratio", "hidden_size", "patch_size"),
            *("spatial_merge_size", "temporal_patch_size", "in_channels", "in_chans"),
        )
    },
    "hidden_act": ("honoured", "must be quick_gelu", ()),
    "rope_parameters": ("honoured", "must be axial at 10000", ()),
    "spatial_patch_size": ("no effect", "older versions saved it; patch_size counts", ()),
    # transformers 5 takes these for num_heads and depth, and lets them win
    "num_attention_heads": ("honoured", "must be num_heads", ()),
    "num_hidden_layers": ("honoured", "must be depth", ()),
    "rope_theta": ("refused", "only 10000 is supported", (10_000,)),
    "rope_scaling": ("refused", "only axial positions at 10000 are supported", ({},)),
    "head_dim": ("refused", "transformers fails on it, embed_dim over num_heads counts", ()),
    "is_causal": ("refused", "transformers fails on it, the ViT looks both ways", ()),
}
_OUTER: _Rules = {
    **_COMMON,
    "text_config": ("honoured", "the decoder; where it is missing its keys stand beside", ()),
    "vision_config": ("honoured", "the ViT", ()),
    "image_token_id": ("honoured", _TOKEN, ()),
    "video_token_id": ("honoured", _TOKEN, ()),
    "vision_start_token_id": ("honoured", _TOKEN, ()),
    "vision_end_token_id": ("honoured", _TOKEN, ()),
    "vision_token_id": ("no effect", "no prompt has it", ()),
    "transformers_weights": (
        "refused",
        "it names another file of weights: call that model.safetensors, and leave the key out",
        ("model.safetensors",),
    ),
    "tie_word_embeddings": ("honoured", "whether the lm_head is the embedding table", ()),
    "quantization_config": ("honoured", "how the weights are packed", ()),
    "compression_config": ("honoured", "how the weights are packed", ()),
    "eos_token_id": ("honoured", "where generation_config.json names none", ()),
    "pad_token_id": ("honoured", "where generation_config.json names none", ()),
    "bos_token_id": ("no effect", "prompts begin without one", ()),
    "use_cache": ("no effect", "the runtime always keeps keys and values", ()),
}


def _list_rules() -> Iterator[KeyRule]:
    for section, keys in ((SECTION, _OUTER), (TEXT_SECTION, _TEXT), (VISION_SECTION, _VISION)):
        for key, (treatment, reason, neutral) in keys.items():
            yield KeyRule(section, key, treatment, reason, neutral)


RULES = tuple(_list_rules())


def check_config_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse what is refused in config.json and its parts; remarks on unknown keys.

    Settings of generation that older versions kept here are `generation`'s to judge.

    Raises:
        ValueError: names the key.
    """
    generation = tuple(
        KeyRule(section, rule.key, "no effect", "see generation_config.json")
        for rule in GENERATION_RULES
        for section in (SECTION, TEXT_SECTION)
    )
    rules = (*generation, *RULES)
    text, vision = config.get("text_config"), config.get("vision_config")
    remarks: tuple[str, ...] = ()
    if isinstance(text, Mapping):
        remarks += check_keys(TEXT_SECTION, text, rules)
    else:  # the flat layout: the decoder's keys stand beside the others
        beside = tuple(
            KeyRule(SECTION, rule.key, rule.treatment, rule.reason, rule.neutral)
            for rule in RULES
            if rule.section == TEXT_SECTION
        )
        rules = (*rules, *beside)
    remarks += check_keys(SECTION, config, rules)
    if isinstance(vision, Mapping):
        remarks += check_keys(VISION_SECTION, vision, rules)
    return remarks
