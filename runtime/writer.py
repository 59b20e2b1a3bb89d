"""One answer as it is written: token after token from logits, and its text as it gets certain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .options import FinishReason, GenerationOptions
from .sampling import Sampler
from .stopping import StopStrings
from .tokens import StreamDecoder, TextTokenizer


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
    ) -> None:
        """Start an answer of at most `max_new_tokens`."""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._sampler = sampler
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(options.stop)
        self._end_ids = frozenset() if options.ignore_eos else frozenset(end_ids)
        self._max_new_tokens = max_new_tokens
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return "".join(self._pieces)

    def write(self, logits: NDArray[np.floating]) -> str:
        """Choose the next token from float[V] and return the text that it makes certain."""
        token_id = self._sampler.pick(logits)
        self.token_ids.append(token_id)
        if token_id in self._end_ids:
            return self._end("stop")
        piece = self._stops.push(self._decoder.push(token_id))
        if self._stops.is_hit:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._max_new_tokens:
            return self._end("length", piece)
        self._pieces.append(piece)
        return piece

    def cancel(self) -> str:
        """End the answer where it is and return the text that was held back."""
        return self._end("cancelled")

    def _end(self, reason: FinishReason, piece: str = "") -> str:
        piece += self._stops.push(self._decoder.flush())
        self.finish_reason = "stop" if self._stops.is_hit else reason
        piece += self._stops.flush()
        self._pieces.append(piece)
        return piece
