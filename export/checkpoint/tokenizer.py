"""A checkpoint's tokenizer files -> the tokenizer.json of the bundle, and the names templates use.

tokenizer.json says nearly all; tokenizer_config.json and special_tokens_map.json add the names of
special tokens. What becomes of each key is in `tokenizer_keys`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.manifest import TokenIds
from ...runtime.manifest_checks import TEMPLATE_TOKENS
from ...runtime.regular_file import read_regular
from .json_file import read_json
from .key_rules import check_keys
from .origin import Found, Origin
from .tokenizer_keys import RULES, SECTION

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
MAP_NAME = "special_tokens_map.json"
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
    raw = read_json(path)
    added = raw.get("added_tokens")
    entries = [t for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    by_id = {entry["id"]: entry for entry in entries if type(entry.get("id")) is int}
    unusual: tuple[str, ...] = ()
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
    content = read_regular(path)
    if plain:
        names = ", ".join(str(entry.get("content")) for entry in plain)
        unusual += (f"{TOKENIZER_NAME}: {names} not marked as special: taken as special",)
        for entry in plain:
            entry["special"] = True
        content = json.dumps(raw, ensure_ascii=False).encode()
    special_tokens, origins, remarks = _find_special_tokens(folder)
    _check_added(folder, by_id)
    return Found(TokenizerFiles(content, special_tokens), origins, unusual + remarks)


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


def _find_special_tokens(
    folder: Path,
) -> tuple[dict[str, str], tuple[Origin, ...], tuple[str, ...]]:
    """Names of special tokens, where each is from, and remarks on unknown keys."""
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).exists() else {}
    remarks = check_keys(SECTION, config, RULES)
    has_defaults = config.get("tokenizer_class") in _CLASSES
    named: dict[str, tuple[Any, str | None]] = {
        name: (content, None) for name, content in CLASS_TOKENS.items() if has_defaults
    }
    named |= {name: (config[name], CONFIG_NAME) for name in TEMPLATE_TOKENS if name in config}
    # A file of older versions, which newer ones read where the config lists no added tokens
    if "added_tokens_decoder" not in config and (folder / MAP_NAME).exists():
        older = read_json(folder / MAP_NAME)
        named |= {name: (older[name], MAP_NAME) for name in TEMPLATE_TOKENS if name in older}
    found: dict[str, str] = {}
    origins = []
    for name, (value, file) in named.items():
        if (content := _read_content(value, f"{file}: {name}")) is not None:
            found[name] = content
            origins.append(Origin(f"special_tokens.{name}", content, file, name if file else None))
    return found, tuple(origins), remarks


def _read_content(value: Any, where: str) -> str | None:
    """A token's text: a string, or an object with `content`."""
    if value is None:
        return None
    content = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(content, str):
        raise ValueError(f"{where} is {value!r:.80}, a token's text is needed")
    return content


def _check_added(folder: Path, by_id: Mapping[Any, Mapping[str, Any]]) -> None:
    """Tokens of tokenizer_config.json, which transformers would add, must be there already."""
    path = folder / CONFIG_NAME
    listed = read_json(path).get("added_tokens_decoder") if path.exists() else None
    if not isinstance(listed, Mapping):
        return
    for token_id, entry in listed.items():
        content = _read_content(entry, f"{CONFIG_NAME}: added_tokens_decoder.{token_id}")
        own = by_id.get(int(token_id)) if token_id.isdecimal() else None
        if own is None or own.get("content") != content:
            got = "nothing" if own is None else repr(own.get("content"))
            raise ValueError(
                f"{folder / CONFIG_NAME}: added token {token_id} is {content!r:.60}, "
                f"{TOKENIZER_NAME} has {got:.60} there: save the tokenizer again with "
                "transformers, so that the two agree"
            )
