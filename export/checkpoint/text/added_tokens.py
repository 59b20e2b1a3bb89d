"""Add the tokens of a tokenizer's other files to tokenizer.json, as transformers does.

tokenizer_config.json lists tokens by id (`added_tokens_decoder`), names some ("eos_token",
"image_token") and marks more as special; special_tokens_map.json and added_tokens.json are read
where it lists none. What of this tokenizer.json lacks, or has with other flags, is added to it, in
transformers' order and by the same library, so that the ids are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ....runtime.bundle.manifest_checks import TEMPLATE_TOKENS
from ....runtime.inputs.tokens import library_errors
from ..files.json_file import read_json

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
MAP_NAME = "special_tokens_map.json"
ADDED_NAME = "added_tokens.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA = "extra_special_tokens"
_OLD_EXTRA = "additional_special_tokens"


@dataclass(frozen=True, slots=True)
class TokenNames:
    """What the files beside tokenizer.json say of tokens.

    Attributes:
        named: name -> (text, file that says it), "eos_token" -> ("<|im_end|>", ...); the text is
            None where the file says that there is none.
        extra: texts of further special tokens, or tokens with flags of their own.
        listed: id -> token with its flags; None: tokenizer_config.json lists none.
        legacy: of added_tokens.json, text -> id.
    """

    named: dict[str, tuple[str | None, str]]
    extra: tuple[str | tokenizers.AddedToken, ...]
    listed: dict[int, tokenizers.AddedToken] | None
    legacy: dict[str, int]


def find_token_names(folder: Path) -> TokenNames:
    """Read tokenizer_config.json and, where it lists no tokens, the older files.

    Raises:
        ValueError: a token is neither a text nor an object with one.
    """
    config = _read(folder / CONFIG_NAME)
    listed = _read_listed(config.get("added_tokens_decoder"))
    older = _read(folder / MAP_NAME) if listed is None else {}
    legacy = _read_legacy(_read(folder / ADDED_NAME)) if listed is None else {}
    extra = config.get(_EXTRA) or config.get(_OLD_EXTRA) or []
    says_extra = (_EXTRA in config or _OLD_EXTRA in config) and not isinstance(extra, Mapping)
    more = [] if says_extra else older.get(_OLD_EXTRA) or []
    named: dict[str, tuple[str | None, str]] = {}
    for file, values in ((CONFIG_NAME, config), (MAP_NAME, older)):
        named |= {name: (text, file) for name, text in _list_named(values, file)}
    tokens: list[str | tokenizers.AddedToken] = []
    for file, found in (
        (CONFIG_NAME, extra),
        (MAP_NAME, older.get(_EXTRA) or []),
        (MAP_NAME, more),
    ):
        if isinstance(found, Mapping):  # by names
            named |= {
                name: (_read_content(value, f"{file}: {_EXTRA}.{name}"), file)
                for name, value in found.items()
            }
        else:
            tokens += _read_extra(found, file)
    return TokenNames(named, tuple(tokens), listed, legacy)


def add_tokens(
    raw: Mapping[str, Any], names: TokenNames, defaults: Mapping[str, str], *, starts_empty: bool
) -> dict[str, Any] | None:
    """Add what tokenizer.json lacks.

    Args:
        raw: tokenizer.json, well-formed.
        names: of the other files.
        defaults: names that the tokenizer's class gives where no file does.
        starts_empty: the class builds its tokenizer from vocabulary and merges alone, and adds
            every token again; else from the whole file.

    Returns:
        tokenizer.json with the tokens in it; None: they are there already, with the same flags.

    Raises:
        ValueError: the tokenizer is not readable, or one of its tokens would change its id.
    """
    own = {entry["id"]: _make_token(entry) for entry in raw["added_tokens"]}
    special = list_special(names, defaults)
    listed = dict(names.listed or {})
    if names.listed is None:
        marked = {*special.values(), *map(_text, names.extra)}
        listed = {i: _make_legacy(text, marked) for text, i in names.legacy.items()} | own
    own_reprs = set() if starts_empty else {repr(token) for token in own.values()}
    additions = [listed[i] for i in sorted(listed) if repr(listed[i]) not in own_reprs]
    there = {token.content for token in additions}
    there |= set() if starts_empty else {token.content for token in own.values()}
    for token in (*special.values(), *names.extra):
        if _text(token) not in there:
            there.add(_text(token))
            is_text = isinstance(token, str)
            additions.append(tokenizers.AddedToken(token, special=True) if is_text else token)
    for token in additions:
        if token.content in special.values():
            token.special = True
    if starts_empty:  # once more, without flags of their own
        every = dict.fromkeys([*special.values(), *map(_text, names.extra)])
        additions += [tokenizers.AddedToken(text, special=True) for text in every]
    if not additions:
        return None
    start = {**raw, "added_tokens": []} if starts_empty else raw
    with library_errors(f"{TOKENIZER_NAME} is not readable", ValueError):
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(start))
        tokenizer.add_tokens(additions)
        now = tokenizer.get_added_tokens_decoder()
    if {i: repr(token) for i, token in now.items()} == {i: repr(own[i]) for i in own}:
        return None
    _check_ids(own, now)
    with library_errors(f"{TOKENIZER_NAME} is not readable", ValueError):
        return json.loads(tokenizer.to_str())


def list_special(names: TokenNames, defaults: Mapping[str, str]) -> dict[str, str]:
    """Names and texts of special tokens, the usual names first, in transformers' order."""
    found = {**defaults, **{name: text for name, (text, _) in names.named.items()}}
    order = (*TEMPLATE_TOKENS, *found)
    return {name: text for name in order if (text := found.get(name)) is not None}


def check_adds_nothing(raw: Mapping[str, Any]) -> None:
    """See that the post-processor puts no tokens around a text, which prompts here have not.

    Raises:
        ValueError: it does, or is not readable.
    """
    model = {**raw.get("model", {}), "vocab": {}, "merges": []}  # 150,000 words make no difference
    with library_errors(f"{TOKENIZER_NAME} is not readable", ValueError):
        small = json.dumps({**raw, "added_tokens": [], "model": model})
        count = tokenizers.Tokenizer.from_str(small).num_special_tokens_to_add(False)
    if count:
        raise ValueError(
            f"{TOKENIZER_NAME}: its post_processor adds {count} tokens to every text, which "
            "transformers does or does not, by the way it is called: put them into the chat "
            "template, and null for post_processor"
        )


def _check_ids(
    own: Mapping[int, tokenizers.AddedToken], now: Mapping[int, tokenizers.AddedToken]
) -> None:
    ids = {token.content: token_id for token_id, token in now.items()}
    for token_id, token in own.items():
        if (got := ids.get(token.content)) != token_id:
            raise ValueError(
                f"{TOKENIZER_NAME} has {token.content!r:.60} as token {token_id}, transformers 5 "
                f"makes it {'no token' if got is None else got} by {CONFIG_NAME}: save the "
                "tokenizer again with transformers, so that the two agree"
            )


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _list_named(values: Mapping[str, Any], file: str) -> Iterator[tuple[str, str | None]]:
    """Keys that name a token: the usual ones, and any that ends in _token."""
    for name, value in values.items():
        is_usual = name in TEMPLATE_TOKENS
        if is_usual and value is None:
            yield name, None
        elif is_usual or (name.endswith("_token") and isinstance(value, str | Mapping)):
            yield name, _read_content(value, f"{file}: {name}")


def _read_content(value: Any, where: str) -> str:
    """A token's text: a string, or an object with `content`."""
    content = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(content, str):
        raise ValueError(f"{where} is {value!r:.80}, a token's text is needed")
    return content


def _read_listed(listed: Any) -> dict[int, tokenizers.AddedToken] | None:
    if listed is None:
        return None
    if not isinstance(listed, Mapping):
        raise ValueError(f"{CONFIG_NAME}: added_tokens_decoder is no object of ids")
    tokens = {}
    for token_id, entry in listed.items():
        where = f"{CONFIG_NAME}: added_tokens_decoder.{token_id}"
        if not token_id.isdecimal() or not isinstance(entry, Mapping):
            raise ValueError(f"{where} is {entry!r:.80}, a token by its id is needed")
        tokens[int(token_id)] = _make_token(entry, where)
    return tokens


def _read_legacy(added: Mapping[str, Any]) -> dict[str, int]:
    for text, token_id in added.items():
        if type(token_id) is not int:
            raise ValueError(f"{ADDED_NAME}: {text:.60} is {token_id!r:.80}, an id is needed")
    return dict(added)


def _read_extra(values: Any, file: str) -> list[str | tokenizers.AddedToken]:
    where = f"{file}: {_EXTRA} or {_OLD_EXTRA}"
    if not isinstance(values, list):
        raise ValueError(f"{where} is {values!r:.80}, a list of tokens is needed")
    return [
        _make_token(value, where) if isinstance(value, Mapping) else _read_content(value, where)
        for value in values
    ]


def _make_token(entry: Mapping[str, Any], where: str = TOKENIZER_NAME) -> tokenizers.AddedToken:
    content = _read_content(entry, where)
    flags = {flag: entry[flag] for flag in FLAGS if flag in entry}
    if wrong := [flag for flag, value in flags.items() if not isinstance(value, bool)]:
        raise ValueError(f"{where}: {wrong[0]} of {content!r:.60} is neither true nor false")
    return tokenizers.AddedToken(content, **flags)


def _text(token: str | tokenizers.AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _make_legacy(text: str, special: set[str]) -> tokenizers.AddedToken:
    is_special = text in special
    return tokenizers.AddedToken(text, normalized=not is_special, special=is_special)
