"""Generate answers token by token: prefill, then one decoder call a step for the whole batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.backend import Backend
from ..backends.kv_cache import KvCache
from ..bundle.embeddings import Embeddings, scatter_visual_rows
from .writer import AnswerWriter

# Tokens of one prefill call, over all sequences: bounds the activations (at 2B about 60 MiB), and
# is long enough for the matrix products to run at full speed.
PREFILL_TOKENS = 512


@dataclass(frozen=True, slots=True)
class DecoderPrompt:
    """A prompt as the decoder gets it.

    Attributes:
        input_ids: int64[L].
        position_ids: int64[3, L], M-RoPE.
        is_visual: bool[L], the pads.
        visual_embeds: float32[M, D], what stands in their place, in order.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    is_visual: NDArray[np.bool_]
    visual_embeds: NDArray[np.float32]

    @property
    def length(self) -> int:
        """L."""
        return len(self.input_ids)


class Generation:
    """One run over a batch of prompts of any lengths; a sequence that ends leaves the rest alone.

    Attributes:
        prefill_s: seconds of the prompts, up to and with the first token of each answer.
        decode_s: seconds of all later tokens.
    """

    def __init__(
        self,
        backend: Backend,
        embeddings: Embeddings,
        cache: KvCache,
        prompts: Sequence[DecoderPrompt],
        writers: Sequence[AnswerWriter],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Bring together what a run needs; nothing is computed yet."""
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self._backend = backend
        self._embeddings = embeddings
        self._cache = cache
        self._prompts = prompts
        self._writers = writers
        self._is_cancelled = is_cancelled

    def run(self) -> Iterator[list[str]]:
        """Yield after every step the new text of each sequence, until all have ended."""
        start = time.perf_counter()
        logits = self._prefill()
        if logits is None:
            yield self._cancel()
            return
        pieces = self._write(logits)
        self.prefill_s = time.perf_counter() - start
        yield pieces
        yield from self._decode()

    def _prefill(self) -> NDArray[np.floating] | None:
        """Fill the cache; logits float[B, V] behind each prompt, None when cancelled."""
        longest = max(prompt.length for prompt in self._prompts)
        if longest * len(self._prompts) <= PREFILL_TOKENS:
            return None if self._is_cancelled() else self._prefill_padded(longest)
        rows = []
        for row, prompt in enumerate(self._prompts):
            logits = self._prefill_row(row, prompt)
            if logits is None:
                return None
            rows.append(logits)
        return np.concatenate(rows)

    def _prefill_padded(self, longest: int) -> NDArray[np.floating]:
        """All prompts in one call, the shorter ones padded on the right.

        Padding writes to the cache too, behind the prompt's end: `seqlens_k` keeps attention from
        it, and the answer's tokens overwrite it.
        """
        call = self._backend.bind_decoder(self._cache, longest)
        call.inputs_embeds[...] = 0
        call.position_ids[...] = 0
        for row, prompt in enumerate(self._prompts):
            length = prompt.length
            self._embed(prompt, slice(0, length), 0, call.inputs_embeds[row, :length])
            call.position_ids[:, row, :length] = prompt.position_ids
            call.seqlens_k[row] = length - 1
            call.logit_index[row] = length - 1
        call.total_sequence_length[...] = longest
        return call.run()

    def _prefill_row(self, row: int, prompt: DecoderPrompt) -> NDArray[np.floating] | None:
        """One prompt in calls of at most PREFILL_TOKENS; logits float[1, V] behind its end."""
        call, logits, num_visual = None, None, 0
        for start in range(0, prompt.length, PREFILL_TOKENS):
            if self._is_cancelled():
                return None
            stop = min(start + PREFILL_TOKENS, prompt.length)
            if call is None or call.inputs_embeds.shape[1] != stop - start:
                call = self._backend.bind_decoder(self._cache, stop - start, row=row)
            span = slice(start, stop)
            num_visual = self._embed(prompt, span, num_visual, call.inputs_embeds[0])
            call.position_ids[:, 0] = prompt.position_ids[:, span]
            call.seqlens_k[...] = stop - 1
            call.total_sequence_length[...] = stop
            call.logit_index[...] = stop - start - 1
            logits = call.run()
        return None if logits is None else logits.copy()

    def _embed(
        self, prompt: DecoderPrompt, span: slice, num_visual: int, out: NDArray[np.floating]
    ) -> int:
        """Write text and visual embeddings of some prompt tokens; visual rows placed so far."""
        self._embeddings.gather(prompt.input_ids[span], out)
        is_visual = prompt.is_visual[span]
        return scatter_visual_rows(is_visual, prompt.visual_embeds, num_visual, out)

    def _decode(self) -> Iterator[list[str]]:
        lengths = np.array([prompt.length for prompt in self._prompts])
        # The paper's rule: an answer goes on after the highest id of its prompt, in all three rows.
        positions = np.array([prompt.position_ids.max() + 1 for prompt in self._prompts])
        call = None
        while not all(writer.finish_reason for writer in self._writers):
            start = time.perf_counter()
            if self._is_cancelled():
                yield self._cancel()
                return
            call = call or self._backend.bind_decoder(self._cache, 1)
            # A sequence that has ended is run along in place: its last token, the same slot.
            token_ids = np.array([writer.token_ids[-1] for writer in self._writers])
            self._embeddings.gather(token_ids, call.inputs_embeds[:, 0])
            call.position_ids[:, :, 0] = positions
            call.seqlens_k[:] = lengths
            call.total_sequence_length[...] = lengths.max() + 1
            call.logit_index[:] = 0
            logits = call.run()
            is_running = [writer.finish_reason is None for writer in self._writers]
            lengths += is_running
            positions += is_running
            pieces = self._write(logits)
            self.decode_s += time.perf_counter() - start
            yield pieces

    def _write(self, logits: NDArray[np.floating]) -> list[str]:
        return [
            "" if writer.finish_reason else writer.write(row)
            for writer, row in zip(self._writers, logits, strict=True)
        ]

    def _cancel(self) -> list[str]:
        return ["" if w.finish_reason else w.cancel() for w in self._writers]
