"""Bound a text's tokens from below by its length, so that a hopeless one is never encoded.

Encoding 10 MB of text takes gigabytes and seconds. A byte-level tokenizer loses no byte of a text,
so no text has fewer tokens than its bytes divided by those of the longest token.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import tokenizers

_KEEPING = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


class TextBound:
    """The length of a tokenizer's longest token, if the tokenizer keeps every byte of a text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, control_ids: frozenset[int]) -> None:
        """Find out how the tokenizer treats text and how long its longest token is.

        Args:
            tokenizer: a byte-level tokenizer.
            control_ids: ids of special tokens, which text never becomes.
        """
        self.normalizes = tokenizer.normalizer is not None
        self.longest_bytes = _find_longest(tokenizer, control_ids) if _keeps(tokenizer) else None

    def count_least(self, text: str) -> int:
        """The fewest tokens that the text can have; 0 where nothing can be said."""
        if self.longest_bytes is None:
            return 0
        num_bytes = len(text.encode())
        if self.normalizes:
            # NFC makes texts shorter. This Python may have an older Unicode, which lacks later
            # compositions; each of those makes one character of two beyond U+FFFF.
            num_bytes = len(unicodedata.normalize("NFC", text).encode())
            num_bytes = num_bytes // 2 if text and max(text) > "\uffff" else num_bytes
        return -(-num_bytes // self.longest_bytes)


def _keeps(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether every byte of a text, brought to NFC at most, is in some token."""
    normalizer, splitter = _read(tokenizer.normalizer), _read(tokenizer.pre_tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        (normalizer is None or normalizer.get("type") == "NFC")
        and _splits_only(splitter)
        and not any(token.lstrip or token.rstrip for token in added if not token.special)
        and _has_all_bytes(tokenizer)
    )


def _has_all_bytes(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether every byte is a token; the library silently drops a byte that is not."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    return all(tokenizer.token_to_id(char) is not None for char in alphabet)


def _splits_only(state: dict[str, Any] | None) -> bool:
    if state is None:
        return False
    kind = state.get("type")
    if kind == "Sequence":
        return all(_splits_only(part) for part in state.get("pretokenizers", ()))
    return kind in ("ByteLevel", "Digits") or (
        kind == "Split" and state.get("behavior") in _KEEPING
    )


def _read(part: Any) -> dict[str, Any] | None:
    """The entry of tokenizer.json that a part of a tokenizer was made from."""
    return None if part is None else json.loads(part.__getstate__())


def _find_longest(tokenizer: tokenizers.Tokenizer, control_ids: frozenset[int]) -> int:
    """Bytes of the longest token; a byte-level token has a character for each of its bytes."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    return max(
        len(token.encode()) if token_id in added else len(token)
        for token, token_id in vocab.items()
        if token_id not in control_ids
    )
