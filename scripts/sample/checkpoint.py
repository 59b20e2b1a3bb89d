"""A reader -> the folder that Qwen2VLForConditionalGeneration and our exporter read, and back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from sample.pixels import CLIP_MEAN, CLIP_STD
from sample.reader import Reader
from sample.spec import FRAMES_PER_PATCH, MERGE, PATCH_PX, SampleSpec, make_config
from sample.words import SPECIAL_TOKENS, write_tokenizer

VOCAB_MULTIPLE = 32  # embedding rows, padded as the real checkpoints' are


def make_spec(tokenizer: Tokenizer) -> SampleSpec:
    """The sizes for this tokenizer."""
    return SampleSpec(vocab_size=-(-tokenizer.get_vocab_size() // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)


def write_checkpoint(folder: Path, reader: Reader, tokenizer: Tokenizer) -> None:
    """Write every file of the folder; the weights in bf16, without the cell heads."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = reader.spec
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    processor = {
        "min_pixels": spec.min_pixels,
        "max_pixels": spec.max_pixels,
        "patch_size": PATCH_PX,
        "temporal_patch_size": FRAMES_PER_PATCH,
        "merge_size": MERGE,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": False,
        "max_new_tokens": 16,
    }
    for name, content in (
        ("config.json", make_config(spec, ids)),
        ("preprocessor_config.json", processor),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    write_tokenizer(folder, tokenizer)
    weights = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in reader.state_dict().items()
        if not name.startswith("cells.")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def read_checkpoint(folder: Path) -> tuple[Reader, Tokenizer]:
    """The shipped weights in fp32, for evaluation; the cell heads stay untrained."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reader = Reader(make_spec(tokenizer))
    weights = {
        name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()
    }
    missing, extra = reader.load_state_dict(weights, strict=False)
    if extra or any(not name.startswith("cells.") for name in missing):
        raise ValueError(f"{folder} does not fit this reader: missing {missing}, unknown {extra}")
    return reader.eval(), tokenizer
