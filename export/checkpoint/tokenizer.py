"""A checkpoint's tokenizer files -> the tokenizer.json of the bundle."""

from __future__ import annotations

from pathlib import Path

from ...runtime.manifest import TokenIds
from ...runtime.regular_file import read_regular
from .json_file import read_json

TOKENIZER_NAME = "tokenizer.json"


def read_tokenizer(folder: Path, tokens: TokenIds) -> bytes:
    """The content of tokenizer.json, which must know the special tokens that config.json names.

    Raises:
        ValueError: the checkpoint has none, with how to make it; or it is another model's.
    """
    path = folder / TOKENIZER_NAME
    if not path.exists():
        slow = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
        advice = (
            "make it from vocab.json and merges.txt once, where transformers is installed: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            if slow
            else "copy it from the model this checkpoint was trained from"
        )
        raise ValueError(f"{folder} has no {TOKENIZER_NAME}; {advice}")
    added = read_json(path).get("added_tokens")
    entries = [t for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    special = [entry.get("id") for entry in entries if entry.get("special") is True]
    for name in ("vision_start", "vision_end", "image_pad", "video_pad"):
        if (token_id := getattr(tokens, name)) not in special:
            raise ValueError(
                f"{path} has no special token with config.json's {name} id {token_id}: "
                "it is another model's tokenizer"
            )
    return read_regular(path)
