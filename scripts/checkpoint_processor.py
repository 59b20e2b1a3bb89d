"""What lies beside a random checkpoint's weights: tokenizer, chat template, picture settings.

The tokenizer has one token a byte and the special tokens under their real ids; nothing of it is
taken from a real vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path

NUM_BYTES_TOKENS = 256
SPECIAL_TOKENS = (
    "endoftext",
    "im_start",
    "im_end",
    "object_ref_start",
    "object_ref_end",
    "box_start",
    "box_end",
    "quad_start",
    "quad_end",
    "vision_start",
    "vision_end",
    "vision_pad",
    "image_pad",
    "video_pad",
)
FIRST_SPECIAL_ID = 151643  # after the byte-pair tokens of a real Qwen2 vocabulary

CHAT_TEMPLATE = (
    "{% set numbered = add_vision_id is defined and add_vision_id %}"
    "{% set n = namespace(image=0, video=0) %}"
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}{% set n.image = n.image + 1 %}"
    "{% if numbered %}Picture {{ n.image }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}{% set n.video = n.video + 1 %}"
    "{% if numbered %}Video {{ n.video }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def special_ids(vocab_size: int) -> dict[str, int]:
    """Ids of the special tokens: the real ones where the vocabulary has room for them."""
    last = FIRST_SPECIAL_ID + len(SPECIAL_TOKENS)
    first = FIRST_SPECIAL_ID if vocab_size >= last else NUM_BYTES_TOKENS
    return {name: first + i for i, name in enumerate(SPECIAL_TOKENS)}


def write_processor(folder: Path, vocab_size: int) -> None:
    """Tokenizer, chat template, preprocessor and generation settings."""
    ids = special_ids(vocab_size)
    write_json(folder / "tokenizer.json", make_tokenizer(ids))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 32768,
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": 56 * 56,
            "max_pixels": 16384 * 28 * 28,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["endoftext"],
            "pad_token_id": ids["endoftext"],
            "eos_token_id": [ids["im_end"], ids["endoftext"]],
            "do_sample": False,
        },
    )


def make_tokenizer(ids: dict[str, int]) -> dict:
    """tokenizer.json of a byte-level vocabulary without merges: one token a byte."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocab |= {f"<|{name}|>": token for name, token in ids.items()}
    added = [
        {
            "id": token,
            "content": f"<|{name}|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, token in ids.items()
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def write_json(path: Path, content: dict) -> None:
    """Write a small JSON file."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
