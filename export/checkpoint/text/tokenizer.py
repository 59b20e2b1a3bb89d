"""Make the bundle's tokenizer.json, and the names that templates use, from a checkpoint's files.

tokenizer.json says nearly all; what the files beside it add is in `added_tokens`. What becomes of
each key is in `tokenizer_keys`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....runtime.bundle.manifest import TokenIds
from ....runtime.bundle.manifest_checks import TEMPLATE_VARIABLES, is_template_name
from ....runtime.files.regular_file import read_regular
from ..files.json_file import read_json
from ..files.origin import Found, Origin
from ..keys.rules import check_keys
from ..keys.tokenizer import RULES, SECTION
from .added_tokens import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    add_tokens,
    check_adds_nothing,
    find_token_names,
    list_special,
)
from .pipeline import check_pipeline

# Of the model's own class of tokenizer, where its file names them not at all
_CLASSES = (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
CLASS_TOKENS = {
    "unk_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_PLACED = ("vision_start", "vision_end", "image_pad", "video_pad")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a bundle gets of a tokenizer.

    Attributes:
        content: of tokenizer.json.
        special_tokens: by the names that chat templates see, "eos_token" -> "<|im_end|>".
    """

    content: bytes
    special_tokens: dict[str, str]


def read_tokenizer(folder: Path, tokens: TokenIds) -> bytes:
    """The content of the bundle's tokenizer.json; see `find_tokenizer`."""
    return find_tokenizer(folder, tokens).value.content


def find_tokenizer(folder: Path, tokens: TokenIds) -> Found[TokenizerFiles]:
    """Read a tokenizer, which must know the special tokens that config.json names.

    Raises:
        ValueError: the checkpoint has none, with how to make it; it is another model's; or a key is
            refused by name.
    """
    path = folder / TOKENIZER_NAME
    if not path.exists():
        raise ValueError(f"{folder} has no {TOKENIZER_NAME}; {_advise(folder)}")
    content, raw = read_regular(path), read_json(path)
    special_tokens, origins, unusual = _find_special_tokens(folder)
    if _is_well_formed(raw):  # else the runtime's own check says what is wrong
        if _has_own_class(folder):
            check_pipeline(raw, path)
        check_adds_nothing(raw)
        if (dropout := raw["model"].get("dropout")) not in (None, 0):
            raise ValueError(
                f"{path}: the model's dropout is {dropout!r:.40}, by which a text has other tokens "
                "each time: put null there"
            )
        names, starts_empty = find_token_names(folder), _has_own_class(folder)
        defaults = CLASS_TOKENS if starts_empty else {}
        changed = add_tokens(raw, names, defaults, starts_empty=starts_empty)
        if changed is not None:
            new = _name_new(raw, changed)
            unusual += (f"{TOKENIZER_NAME}: tokens of the files beside it are added: {new}",)
            raw, content = changed, json.dumps(changed, ensure_ascii=False).encode()
    entries = _list_added(raw)
    by_id = {entry["id"]: entry for entry in entries if type(entry.get("id")) is int}
    plain = []
    for name in _PLACED:
        token_id = getattr(tokens, name)
        if token_id not in by_id:
            raise ValueError(
                f"{path} has no added token with config.json's {name} id {token_id}: "
                "it is another model's tokenizer"
            )
        if by_id[token_id].get("special") is not True:
            plain.append(by_id[token_id])
    if plain:
        shown = ", ".join(str(entry.get("content")) for entry in plain)
        unusual += (f"{TOKENIZER_NAME}: {shown} not marked as special: taken as special",)
        for entry in plain:
            entry["special"] = True
        content = json.dumps(raw, ensure_ascii=False).encode()
    return Found(TokenizerFiles(content, special_tokens), origins, unusual)


def find_eos(folder: Path) -> int | None:
    """The id of the tokenizer's end token; None where it has none or is not there."""
    if not (folder / TOKENIZER_NAME).exists():
        return None
    content = _find_special_tokens(folder)[0].get("eos_token")
    raw = read_json(folder / TOKENIZER_NAME)
    added = raw.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and entry.get("content") == content:
            token_id = entry.get("id")
            return token_id if type(token_id) is int else None
    return None


def _advise(folder: Path) -> str:
    slow = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if slow:
        return (
            "make it from vocab.json and merges.txt once, where transformers is installed: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return "copy it from the model this checkpoint was trained from"


def _list_added(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = raw.get("added_tokens")
    return [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []


def _is_well_formed(raw: Mapping[str, Any]) -> bool:
    """Whether tokens can be added at all."""
    entries = _list_added(raw)
    return (
        isinstance(raw.get("model"), Mapping)
        and bool(entries)
        and len(entries) == len(raw["added_tokens"])
        and all(type(e.get("id")) is int and isinstance(e.get("content"), str) for e in entries)
    )


def _name_new(raw: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    before = _list_added(raw)
    names = [str(entry["content"]) for entry in _list_added(changed) if entry not in before]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def _has_own_class(folder: Path) -> bool:
    """Whether transformers takes Qwen2Tokenizer, which is made of vocabulary and merges alone."""
    for name in (CONFIG_NAME, "config.json"):
        config = read_json(folder / name) if (folder / name).exists() else {}
        if (kind := config.get("tokenizer_class")) is not None:
            return kind in _CLASSES
    return True


def _find_special_tokens(
    folder: Path,
) -> tuple[dict[str, str], tuple[Origin, ...], tuple[str, ...]]:
    """Names of special tokens, where each is from, and remarks on unknown keys."""
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).exists() else {}
    remarks = check_keys(SECTION, config, RULES, is_known=lambda key: key.endswith("_token"))
    names = find_token_names(folder)
    found = list_special(names, CLASS_TOKENS if _has_own_class(folder) else {})
    origins = []
    for name, content in found.items():
        _, file = names.named.get(name, (None, None))
        if not is_template_name(name):
            raise ValueError(
                f"{file}: a special token has the name {name!r:.80}, which chat templates can't "
                f"use: needed a word, and none of {', '.join(TEMPLATE_VARIABLES)}"
            )
        origins.append(Origin(f"special_tokens.{name}", content, file, name if file else None))
    return found, tuple(origins), remarks
