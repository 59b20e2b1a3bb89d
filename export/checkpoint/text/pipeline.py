"""Cut text before the vocabulary as transformers' own tokenizer class does.

Up to version 4 transformers runs tokenizer.json as it is. Version 5 takes vocabulary, merges and
added tokens from it and builds the rest anew, where the class is Qwen2-VL's own. A file that says
something else there has two meanings, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The cuts of Qwen2Tokenizer; byte-level words, numbers digit by digit
QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_OFF = (None, "", False)
_MODEL_SWITCHES = (
    *("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
    *("fuse_unk", "byte_fallback", "ignore_merges"),
)


def check_pipeline(raw: Mapping[str, Any], path: Path) -> None:
    """See that a tokenizer.json means the same to all versions, under the model's own class.

    Args:
        raw: the file.
        path: of it, for the message.

    Raises:
        ValueError: names the part that doesn't.
    """
    model = raw["model"]
    parts = {
        "normalizer": _is(raw.get("normalizer"), type="NFC"),
        "pre_tokenizer": _is_qwen2(raw.get("pre_tokenizer")),
        "decoder": _is(raw.get("decoder"), type="ByteLevel"),
        "model": all(model.get(switch) in _OFF for switch in _MODEL_SWITCHES),
    }
    if other := [part for part, is_own in parts.items() if not is_own]:
        raise ValueError(
            f"{path}: {other[0]} is not that of Qwen2Tokenizer, which transformers 5 puts in its "
            "place while older versions follow the file: where the file is right, set "
            "tokenizer_class in tokenizer_config.json to PreTrainedTokenizerFast"
        )


def _is_qwen2(pre_tokenizer: Any) -> bool:
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, Mapping) else None
    if not isinstance(steps, list) or len(steps) != 2:
        return False
    cut, byte_level = steps
    return _is(
        cut, type="Split", pattern={"Regex": QWEN2_CUTS}, behavior="Isolated", invert=False
    ) and _is(byte_level, type="ByteLevel", add_prefix_space=False, use_regex=False)


def _is(step: Any, **needed: Any) -> bool:
    return isinstance(step, Mapping) and all(step.get(k) == value for k, value in needed.items())
