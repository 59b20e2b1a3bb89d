"""Encode and decode text with tokenizer.json, keeping control tokens apart from text.

Text is encoded with every special token switched off: `<|im_end|>` in a question becomes several
ordinary tokens. Control ids are only placed where a chat template wrote them (`prompt.py`).
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers
from tokenizers import decoders

from ..bundle.manifest import TokenIds
from ..errors import BundleError, ContextLengthError
from ..files.regular_file import check_regular
from .text_bound import TextBound


class TextTokenizer:
    """A bundle's tokenizer.json, checked against the ids of its manifest.

    Attributes:
        control: the special tokens and their ids.
        control_pattern: matches them as the tokenizers library does: leftmost, then longest.
    """

    def __init__(
        self, path: str | Path, ids: TokenIds, vocab_size: int, content: bytes | None = None
    ) -> None:
        """Read and check the file, or `content` in its place.

        Raises:
            BundleError: it can't be read, or is not the tokenizer that the manifest's ids are from.
        """
        with library_errors(f"{path} is not a readable tokenizer.json"):
            if content is None:
                check_regular(path)
                self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            else:
                self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        # A file may still have the padding and truncation of a training run.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # meaning: as ordinary text
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token_id: token for token_id, token in added.items() if token.special}
        for name in ("vision_start", "vision_end", "image_pad", "video_pad"):
            if (token_id := getattr(ids, name)) not in special:
                raise BundleError(
                    f"{path} has no special token with the manifest's {name} id {token_id}: "
                    "it is another checkpoint's tokenizer"
                )
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            raise BundleError(f"{path} is not a byte-level tokenizer, as those of Qwen2-VL are")
        size = max(self._tokenizer.get_vocab_size(False), max(added, default=-1) + 1)
        if size > vocab_size:
            raise BundleError(f"{path} has {size} token ids, the embedding table {vocab_size} rows")
        for token in special.values():
            if token.lstrip or token.rstrip or token.single_word:
                raise BundleError(
                    f"{path}: special token {token.content!r} asks for lstrip, rstrip or "
                    "single_word, which this runtime doesn't support"
                )
        self.control = {token.content: token_id for token_id, token in special.items()}
        self._control_ids = frozenset(special)
        longest_first = sorted(self.control, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)))

    def encode_text(self, text: str) -> list[int]:
        """Ids of ordinary text; special tokens in it are encoded as text, too."""
        with library_errors("the tokenizer can't encode a text"):
            token_ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(token_ids):
            # No known tokenizer does this; it takes a model that holds a special token's name.
            names = [n for n, i in self.control.items() if i in token_ids]
            raise BundleError(f"the tokenizer encodes ordinary text as {', '.join(names)}")
        return token_ids

    def check_alphabet(self) -> None:
        """Check that every byte has a token: the library silently drops a byte that has none.

        Raises:
            BundleError: names the first byte without a token.
        """
        for char, byte in _BYTE_OF.items():
            if self._tokenizer.token_to_id(char) is None:
                raise BundleError(f"the tokenizer has no token for the byte {byte:#04x}")

    @functools.cached_property
    def bound(self) -> TextBound:
        """The fewest tokens that texts can have; computed once, from the whole vocabulary."""
        return TextBound(self._tokenizer, self._control_ids)

    def check_length(
        self, texts: Iterable[str], num_others: int, max_tokens: int, *, name: str = "the prompt"
    ) -> None:
        """Refuse texts that can't fit, before they are encoded.

        Args:
            texts: ordinary texts.
            num_others: further tokens beside them.
            max_tokens: most tokens that all may have together.
            name: how the error calls the texts.

        Raises:
            ContextLengthError: there would be too many tokens even if all were the longest ones.
        """
        texts = list(texts)
        num_chars = sum(map(len, texts))
        if num_chars <= max_tokens - num_others:  # most prompts; a token has a character at least
            return
        least = num_others + sum(map(self.bound.count_least, texts))
        if least > max_tokens:
            raise ContextLengthError(
                f"{name} has at least {least} tokens ({num_chars} characters of text and "
                f"{num_others} other tokens), the model's context has room for {max_tokens}: "
                "shorten it"
            )

    def decode(self, token_ids: list[int], *, keep_special: bool = False) -> str:
        """Text of ids without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=not keep_special)

    def read_token_bytes(self, token_id: int, *, keep_special: bool = False) -> bytes:
        """The bytes that a byte-level token stands for; none for unknown ids.

        Args:
            token_id: the token.
            keep_special: a special token stands for its name instead of nothing.
        """
        if not keep_special and token_id in self._control_ids:
            return b""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(_BYTE_OF[char] for char in token)
        except KeyError:  # an added token is not spelled in the byte alphabet
            return token.encode()


class StreamDecoder:
    """Turns ids into text one by one; the pieces add up to `decode` of all of them."""

    def __init__(self, tokenizer: TextTokenizer, *, keep_special: bool = False) -> None:
        """Start an answer; `keep_special` writes special tokens into it by name."""
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        token = self._tokenizer.read_token_bytes(token_id, keep_special=self._keep_special)
        return self._utf8.decode(token)

    def flush(self) -> str:
        """The replacement character of an unfinished character at the end, or nothing."""
        return self._utf8.decode(b"", final=True)


@contextmanager
def library_errors(what: str, kind: type[ValueError] = BundleError) -> Iterator[None]:
    """Turn the library's errors into `kind`: plain Exceptions, and panics of its Rust code."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {' '.join(str(error).split())}") from error


def _make_byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _make_byte_alphabet()
