"""Write one answer: choose token after token, and release text once it is certain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..bundle.generation_defaults import GenerationDefaults
from ..inputs.tokens import StreamDecoder, TextTokenizer
from ..options import FinishReason, GenerationOptions
from .sampling import Sampler
from .stopping import StopStrings, StopTokens


def make_writer(
    sampler: Sampler,
    tokenizer: TextTokenizer,
    options: GenerationOptions,
    defaults: GenerationDefaults,
    end_ids: tuple[int, ...],
    prompt_ids: NDArray[np.int64],
    max_new_tokens: int,
) -> AnswerWriter:
    """The writer of one request, with the checkpoint's stop strings where it names none.

    Args:
        sampler: chooses the tokens.
        tokenizer: turns them into text.
        options: of the request.
        defaults: of the bundle.
        end_ids: tokens that end the answer.
        prompt_ids: int64[L]; a stop string may begin in the prompt.
        max_new_tokens: the answer's limit.
    """
    takes_defaults = options.stop is None and not options.ignore_defaults
    stop_tokens = None
    if takes_defaults and defaults.stop_strings:
        num_tail = StopTokens.count_tail(defaults.stop_strings)
        last_ids = prompt_ids[len(prompt_ids) - min(len(prompt_ids), num_tail) :].tolist()
        prompt = [tokenizer.read_token_bytes(token_id, keep_special=True) for token_id in last_ids]
        stop_tokens = StopTokens(defaults.stop_strings, prompt)
    return AnswerWriter(sampler, tokenizer, options, end_ids, max_new_tokens, stop_tokens)


class AnswerWriter:
    """Turns one sequence's logits into tokens and text until something ends it.

    Attributes:
        token_ids: every token so far, an end token included.
        finish_reason: None while the answer goes on.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: TextTokenizer,
        options: GenerationOptions,
        end_ids: tuple[int, ...],
        max_new_tokens: int,
        stop_tokens: StopTokens | None = None,
    ) -> None:
        """Start an answer of at most `max_new_tokens`.

        Args:
            sampler: chooses the tokens.
            tokenizer: turns them into text.
            options: of the request.
            end_ids: tokens that end the answer.
            max_new_tokens: its limit.
            stop_tokens: finds the checkpoint's stop strings, which stay in the text.
        """
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, keep_special=not options.skip_special_tokens)
        self._stops = StopStrings(options.stop or ())
        self._stop_tokens = stop_tokens
        self._end_ids = frozenset() if options.ignore_eos else frozenset(end_ids)
        self._max_new_tokens = max_new_tokens
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return "".join(self._pieces)

    def write(self, logits: NDArray[np.floating]) -> str:
        """Choose the next token and return the text that it makes certain.

        Args:
            logits: float[V].
        """
        token_id = self._sampler.pick(logits)
        self.token_ids.append(token_id)
        if token_id in self._end_ids:
            return self._end("stop")
        piece = self._stops.push(self._decoder.push(token_id))
        if self._stops.is_hit:
            self.finish_reason = "stop"
        elif self._completes_stop(token_id):
            return self._end("stop", piece)
        elif len(self.token_ids) >= self._max_new_tokens:
            return self._end("length", piece)
        self._pieces.append(piece)
        return piece

    def cancel(self) -> str:
        """End the answer where it is and return the text that was held back."""
        return self._end("cancelled")

    def _completes_stop(self, token_id: int) -> bool:
        if self._stop_tokens is None:
            return False
        return self._stop_tokens.push(self._tokenizer.read_token_bytes(token_id, keep_special=True))

    def _end(self, reason: FinishReason, piece: str = "") -> str:
        piece += self._stops.push(self._decoder.flush())
        self.finish_reason = "stop" if self._stops.is_hit else reason
        piece += self._stops.flush()
        self._pieces.append(piece)
        return piece
