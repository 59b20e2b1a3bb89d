"""Turn messages into token ids by the checkpoint's chat template, safe against what users write.

The template puts the user's text between control tokens, so a question that contains `<|im_end|>`
could end its own turn, and one with `<|image_pad|>` could take a picture's place. Therefore one
character of every special token in the user's text is hidden behind an unguessable name before the
template is rendered, also of a token that the text's ends could form with the template's text. The
special tokens in the rendered text are then the template's own. They become control ids; everything
between them is encoded as ordinary text, with its hidden characters put back. Text without special
tokens goes through the template untouched, so its ids are exactly those of the reference.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import TokenIds
from ..errors import PromptError
from .messages import MediaPart, Message, TextPart
from .template.render import compile_template, render_template
from .tokens import TextTokenizer


class ChatTemplate:
    """A compiled chat template, and the tokenizer that has its control tokens."""

    def __init__(
        self,
        source: str,
        tokenizer: TextTokenizer,
        ids: TokenIds,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """Compile the template.

        Args:
            source: the template, in Jinja.
            tokenizer: has the control tokens that the template writes.
            ids: say which of them are pads.
            special_tokens: names that the template may use, "eos_token" -> "<|im_end|>".

        Raises:
            BundleError: the template does not compile.
        """
        self._template = compile_template(source)
        self._tokenizer = tokenizer
        self._special_tokens = dict(special_tokens or {})
        self._pads = {ids.image_pad: "image", ids.video_pad: "video"}
        # Tokens that mark turns, end an answer or stand for a picture; users can never write them
        reserved = {ids.vision_start, ids.vision_end, *self._pads, ids.pad, *ids.eos}
        self._reserved = {
            name
            for name, token_id in tokenizer.control.items()
            if token_id in reserved or name in source or name in self._special_tokens.values()
        }

    def check_allowed(self, names: Iterable[str]) -> frozenset[str]:
        """Check that special tokens may stand in the text of a prompt.

        Raises:
            PromptError: one is not a special token of this bundle, or structures prompts.
        """
        if isinstance(names, str):
            raise PromptError(f"allowed_special_tokens is {names!r:.80}, needed a list of tokens")
        allowed = frozenset(names)
        for name in sorted(allowed, key=repr):
            if name not in self._tokenizer.control:
                raise PromptError(
                    f"allowed_special_tokens holds {name!r:.80}, which is not a special token of "
                    f"this bundle; a prompt may have: {self._list_allowable()}"
                )
            if name in self._reserved or any(name in other for other in self._reserved):
                raise PromptError(
                    f"{name} can't be allowed in a prompt: it marks turns, ends answers or stands "
                    f"for pictures; a prompt may have: {self._list_allowable()}"
                )
        return allowed

    def _list_allowable(self) -> str:
        names = [name for name in self._tokenizer.control if name not in self._reserved]
        return ", ".join(names[:20]) or "none"

    def encode(
        self,
        messages: Sequence[Message],
        num_visual_tokens: Sequence[int],
        *,
        add_vision_id: bool = False,
        max_tokens: int | None = None,
        allowed: Iterable[str] = (),
    ) -> NDArray[np.int64]:
        """Render and encode.

        Args:
            messages: checked messages.
            num_visual_tokens: visual tokens of each picture and clip, in the order of the prompt;
                its pad is repeated that many times.
            add_vision_id: let the template number the pictures ("Picture 1: ").
            max_tokens: the most that fit; text that can't fit is refused before it is encoded.
            allowed: special tokens that texts may contain as such.

        Returns:
            input_ids: int64[L].

        Raises:
            PromptError: the template refuses the messages, or its pads don't match their pictures.
            ContextLengthError: the text has more than `max_tokens` tokens for certain.
        """
        hidden = HiddenText(self._tokenizer, self.check_allowed(allowed))
        text = self._render(messages, hidden.hide, add_vision_id)
        kinds = [p.kind for m in messages for p in m.parts if isinstance(p, MediaPart)]
        written: list[str] = []
        pieces: list[str | list[int]] = []  # ordinary text, and control tokens
        start = 0
        for match in self._tokenizer.control_pattern.finditer(text):
            pieces.append(hidden.restore(text[start : match.start()]))
            start = match.end()
            token_id = self._tokenizer.control[match.group()]
            num_repeats = 1
            if token_id in self._pads:
                if len(written) < len(num_visual_tokens):
                    num_repeats = num_visual_tokens[len(written)]
                written.append(self._pads[token_id])
            pieces.append([token_id] * num_repeats)
        pieces.append(hidden.restore(text[start:]))
        if written != kinds or len(kinds) != len(num_visual_tokens):
            raise PromptError(
                f"the chat template wrote pads for {written}, but the messages show {kinds} "
                f"and {len(num_visual_tokens)} were prepared"
            )
        if max_tokens is not None:
            texts = [piece for piece in pieces if isinstance(piece, str)]
            num_control = sum(len(piece) for piece in pieces if not isinstance(piece, str))
            self._tokenizer.check_length(texts, num_control, max_tokens)
        token_ids: list[int] = []
        for piece in pieces:
            is_text = isinstance(piece, str)
            token_ids += self._tokenizer.encode_text(piece) if is_text else piece
        return np.array(token_ids, np.int64)

    def _render(
        self, messages: Sequence[Message], hide: Callable[[str], str], add_vision_id: bool
    ) -> str:
        turns = [_make_turn(message, hide) for message in messages]
        asked = {"add_vision_id": True} if add_vision_id else {}  # templates may ask if it is there
        return render_template(
            self._template,
            messages=turns,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **asked,
            **self._special_tokens,
        )


class HiddenText:
    """Hides, for one prompt, everything in users' text that could be read as a special token."""

    def __init__(self, tokenizer: TextTokenizer, allowed: Iterable[str] = ()) -> None:
        """Draw the prompt's own placeholder name; `allowed` tokens are not hidden."""
        self._allowed = frozenset(allowed)
        self._control_pattern = tokenizer.control_pattern
        self._names = tuple(tokenizer.control)
        pattern = tokenizer.control_pattern.pattern
        self._starts = re.compile(f"(?={pattern})") if pattern else re.compile(r"(?!)")
        # The name stands between private-use characters and is new for every prompt: nobody who
        # writes a text can know it, and no special token holds it.
        self._nonce = secrets.token_hex(8)
        self._placeholder = re.compile(f"\ue000{self._nonce}([0-9a-f]+)\ue001")

    def hide(self, text: str) -> str:
        """The text with one character of each would-be special token replaced by a placeholder."""
        if not self._allowed:
            return self._hide_all(text)
        pieces, start = [], 0
        for match in self._control_pattern.finditer(text):
            if match.group() in self._allowed:
                pieces += [self._hide_all(text[start : match.start()]), match.group()]
                start = match.end()
        return "".join([*pieces, self._hide_all(text[start:])])

    def _hide_all(self, text: str) -> str:
        if not text:
            return text
        hide = {match.start() for match in self._starts.finditer(text)}
        # A token could also be put together from this text and what stands beside it.
        for name in self._names:
            if text in name:
                hide |= {0, len(text) - 1}
            for size in range(1, min(len(name), len(text) + 1)):
                if text.startswith(name[-size:]):
                    hide.add(0)
                if text.endswith(name[:size]):
                    hide.add(len(text) - 1)
        if not hide:
            return text
        pieces, start = [], 0
        for place in sorted(hide):
            pieces += [text[start:place], self._make_placeholder(text[place])]
            start = place + 1
        return "".join([*pieces, text[start:]])

    def restore(self, text: str) -> str:
        """Put the hidden characters back."""
        return self._placeholder.sub(lambda match: chr(int(match.group(1), 16)), text)

    def _make_placeholder(self, char: str) -> str:
        return f"\ue000{self._nonce}{ord(char):x}\ue001"


def _make_turn(message: Message, hide: Callable[[str], str]) -> dict[str, Any]:
    """A message as templates expect it, with the kinds of its pictures but not their sources."""
    if message.is_plain:
        text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
        return {"role": message.role, "content": hide(text)}
    parts = [
        {"type": "text", "text": hide(part.text)}
        if isinstance(part, TextPart)
        else {"type": part.kind, part.kind: ""}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}
