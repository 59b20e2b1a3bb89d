"""A small tokenizer, chat template and manifest with Qwen2-VL's structure."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from vlmedge.runtime.bundle.manifest import TokenIds
from vlmedge.runtime.inputs.prompt import ChatTemplate
from vlmedge.runtime.inputs.tokens import TextTokenizer

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
)
CORPUS = ("the total of the receipt is 12.50", "image_pad", "im_start", "user system assistant")
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
VOCAB_SIZE = 400

TEMPLATE = """\
{%- set count = namespace(image=0, video=0) %}
{%- macro number(name, value) %}
{%- if add_vision_id %}{{ name }} {{ value }}: {% endif %}
{%- endmacro %}
{%- for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}
{%- set count.image = count.image + 1 %}
{{- number('Picture', count.image) }}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' %}
{%- set count.video = count.video + 1 %}
{{- number('Video', count.video) }}<|vision_start|><|video_pad|><|vision_end|>
{%- else %}
{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    """A byte-level BPE as Qwen2-VL's: NFC, one digit a token, no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def token_ids(tokenizer_file) -> TokenIds:
    added = {t["content"]: t["id"] for t in json.loads(tokenizer_file.read_text())["added_tokens"]}
    return TokenIds(
        vision_start=added["<|vision_start|>"],
        vision_end=added["<|vision_end|>"],
        image_pad=added["<|image_pad|>"],
        video_pad=added["<|video_pad|>"],
        eos=(added["<|im_end|>"], added["<|endoftext|>"]),
        pad=added["<|endoftext|>"],
    )


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file, token_ids) -> TextTokenizer:
    return TextTokenizer(tokenizer_file, token_ids, VOCAB_SIZE)


@pytest.fixture(scope="session")
def template(tokenizer, token_ids) -> ChatTemplate:
    return ChatTemplate(TEMPLATE, tokenizer, token_ids)


@pytest.fixture(scope="session")
def template_source() -> str:
    return TEMPLATE


@pytest.fixture(scope="session")
def reference_tokenizer(tokenizer_file):
    """transformers' own tokenizer of the same file: the oracle for ordinary text."""
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    reference.chat_template = TEMPLATE
    return reference


@pytest.fixture(scope="session")
def make_checkpoint():
    """scripts/make_checkpoint.py's function: a seeded random checkpoint in any shape."""
    path = Path(__file__).parents[2] / "scripts" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.make_checkpoint


@pytest.fixture(scope="session", params=["tiny", "tiny-7b"])
def tiny(request, make_checkpoint, tmp_path_factory):
    """A tiny checkpoint (tied head; untied head, 7 query heads a key head) and its fp32 bundle."""
    from vlmedge.export.exporter import export_checkpoint

    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(folder / "checkpoint", request.param, seed=3, dtype="F32")
    export_checkpoint(checkpoint, folder / "bundle")
    return SimpleNamespace(checkpoint=checkpoint, bundle=folder / "bundle")


@pytest.fixture(scope="session")
def model(tiny):
    from vlmedge.runtime import Model

    with Model.load(tiny.bundle, num_threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def reference(tiny):
    """transformers' model on the same weights, in float32."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    torch.set_num_threads(1)
    reference = Qwen2VLForConditionalGeneration.from_pretrained(
        tiny.checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    reference.generation_config.eos_token_id = None
    return reference.eval()
