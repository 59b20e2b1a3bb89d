"""The rule of each key of tokenizer_config.json; see `rules.py`."""

from __future__ import annotations

from .rules import KeyRule, Treatment

SECTION = "tokenizer_config.json"
_TEMPLATE = "chat templates see it by this name"
_ADDED = "added where tokenizer.json lacks them"
_LENGTH = "the context is config.json's; a prompt is never cut"
_SIDE = "rows of a batch are padded by the runtime; a prompt is never cut"
_NAMES = "names a class or file; tokenizer.json is what counts"

_KEYS: dict[str, tuple[Treatment, str, tuple]] = {
    **{
        name: ("honoured", _TEMPLATE, ())
        for name in (
            *("bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        )
    },
    "eos_token": ("honoured", f"{_TEMPLATE}; ends answers where no config names an id", ()),
    "chat_template": ("honoured", "where the processor has none of its own", ()),
    "added_tokens_decoder": ("honoured", "tokens and their flags, before tokenizer.json's", ()),
    "add_bos_token": ("refused", "Qwen2-VL's prompts begin without one", (False,)),
    "add_eos_token": ("refused", "Qwen2-VL's prompts end without one", (False,)),
    "add_prefix_space": ("refused", "it would put a space before every text", (False,)),
    "split_special_tokens": ("refused", "it would spell out the template's tokens", (False,)),
    "do_lower_case": ("refused", "Qwen2-VL's texts keep their case", (False,)),
    "clean_up_tokenization_spaces": (
        "no effect",
        "transformers 5 leaves byte-level texts as they are",
        (),
    ),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": (
        "refused",
        "it takes spaces out of answers",
        (False,),
    ),
    "additional_special_tokens": ("honoured", _ADDED, ()),
    "extra_special_tokens": ("honoured", f"{_ADDED}; by names, as a name of a token", ()),
    "model_specific_special_tokens": ("refused", "transformers writes extra_special_tokens", ({},)),
    "model_max_length": ("no effect", _LENGTH, ()),
    "max_len": ("no effect", _LENGTH, ()),
    "max_length": ("no effect", _LENGTH, ()),
    "truncation_side": ("no effect", _SIDE, ()),
    "truncation": ("no effect", _SIDE, ()),
    "padding_side": ("no effect", _SIDE, ()),
    "padding": ("no effect", _SIDE, ()),
    "pad_to_multiple_of": ("no effect", _SIDE, ()),
    "pad_token_type_id": ("no effect", _SIDE, ()),
    "stride": ("no effect", _SIDE, ()),
    "truncation_strategy": ("no effect", _SIDE, ()),
    "errors": ("no effect", "bytes that are no UTF-8 become U+FFFD", ()),
    "model_input_names": ("no effect", "about the form of what transformers returns", ()),
    "return_token_type_ids": ("no effect", "about the form of what transformers returns", ()),
    "verbose": ("no effect", "about what transformers prints", ()),
    "response_template": ("no effect", "about parsing answers, which transformers offers", ()),
    "response_schema": ("no effect", "about parsing answers, which transformers offers", ()),
    "is_local": ("no effect", "about where the files came from", ()),
    "local_files_only": ("no effect", "about where the files came from", ()),
    "name_or_path": ("no effect", "about where the files came from", ()),
    "special_tokens_map_file": ("no effect", "about where the files came from", ()),
    "vocab": ("no effect", _NAMES, ()),
    "merges": ("no effect", _NAMES, ()),
    "backend": ("no effect", _NAMES, ()),
    "tokenizer_class": (
        "refused",
        "another class cuts texts in its own way",
        (
            *("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast"),
            *("TokenizersBackend", "PreTrainedTokenizer"),
        ),
    ),
    "tokenizer_file": ("no effect", _NAMES, ()),
    "vocab_file": ("no effect", _NAMES, ()),
    "merges_file": ("no effect", _NAMES, ()),
    "processor_class": ("no effect", _NAMES, ()),
    "auto_map": ("no effect", _NAMES, ()),
    "use_fast": ("no effect", _NAMES, ()),
    "legacy": ("no effect", _NAMES, ()),
    **{
        name: ("honoured", f"{_TEMPLATE}, like any key that ends in _token", ())
        for name in ("image_token", "video_token")
    },
}

RULES = tuple(
    KeyRule(SECTION, key, treatment, reason, neutral)
    for key, (treatment, reason, neutral) in _KEYS.items()
)
