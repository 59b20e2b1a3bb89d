"""The sample's own tokenizer and chat template: any bytes, digits one by one, our words whole."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from jinja2 import Environment
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sample import charts, clips, papers
from sample.examples import ITEMS, WAYS

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
MOST_WORDS = 1024  # more than needed: the trainer stops when every word is a token
PIECES = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s")
SYSTEM = "You are a helpful assistant."

# Qwen2-VL's chat: a default system turn, then <|im_start|>role, the message's parts, <|im_end|>.
CHAT_TEMPLATE = """\
{%- set seen = namespace(pictures=0, clips=0) -%}
{%- if messages and messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') or 'image' in part or 'image_url' in part -%}
{%- set seen.pictures = seen.pictures + 1 -%}
{{ 'Picture ' ~ seen.pictures ~ ': ' if add_vision_id else '' }}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.clips = seen.clips + 1 -%}
{{ 'Video ' ~ seen.clips ~ ': ' if add_vision_id else '' }}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def list_texts() -> list[str]:
    """Every sentence of questions and answers, and the chat's own words."""
    questions = [
        *(
            papers.NUMBER_QUESTIONS
            + papers.PRICE_QUESTIONS
            + papers.ITEM_QUESTIONS
            + papers.TOTAL_QUESTIONS
        ),
        *(q.format(item=item) for q in papers.ROW_QUESTIONS for item in ITEMS),
        *(charts.HIGHEST_QUESTIONS + charts.LOWEST_QUESTIONS + charts.DIAL_QUESTIONS),
        *(clips.WHICH_QUESTIONS + clips.WAY_QUESTIONS),
    ]
    return [
        SYSTEM,
        "system",
        "user",
        "assistant",
        "Picture : ",
        "Video : ",
        *questions,
        *ITEMS,
        *WAYS,
    ]


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE over list_texts(), the special tokens behind it, as in Qwen2-VL."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(PIECES, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_WORDS,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list_texts(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


@cache
def _template():
    return Environment(autoescape=False).from_string(CHAT_TEMPLATE)


def render_prompt(question: str, kind: str) -> str:
    """The chat text of one "image" or "video" and a question, up to the assistant's turn."""
    content = [{"type": kind}, {"type": "text", "text": question}]
    return _template().render(
        messages=[{"role": "user", "content": content}], add_generation_prompt=True
    )


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.json, named as the 2B's."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE}, indent=2) + "\n"
    )
