"""A bundle on one engine -> what it makes of questions: embeddings, logits, tokens.

The runtime's own parts, with the logits of each step kept; told tokens are read instead of chosen,
so that two engines see the same text to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmedge.runtime.backends.kv_cache import plan_capacity
from vlmedge.runtime.backends.open_backend import open_backend
from vlmedge.runtime.bundle.embeddings import Embeddings, scatter_visual_rows
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.decode.encode import encode_visuals
from vlmedge.runtime.inputs.request import Request, RequestMaker


@dataclass(frozen=True, slots=True)
class Observation:
    """Of one question.

    Attributes:
        image_embeds: float32[M, D].
        logits: float32[T, V], before each token.
        token_ids: the likeliest of each.
    """

    image_embeds: NDArray[np.float32]
    logits: NDArray[np.float32]
    token_ids: tuple[int, ...]

    @property
    def is_finite(self) -> bool:
        """Whether all of it are numbers."""
        return bool(np.isfinite(self.image_embeds).all() and np.isfinite(self.logits).all())


class Side:
    """A bundle and what runs it."""

    def __init__(self, bundle: Path, provider: str) -> None:
        """Open it; graphs are loaded when they are needed."""
        self.manifest = read_manifest(bundle)
        self.maker = RequestMaker(bundle, self.manifest, None)
        self.embeddings = Embeddings(bundle, self.manifest.embedding)
        self.backend = open_backend(
            bundle, self.manifest, providers=provider, num_threads=None, residency="all"
        )

    def observe(
        self,
        messages: Sequence[dict[str, Any]],
        num_tokens: int,
        forced: Sequence[int] | None = None,
    ) -> Observation:
        """Answer greedily, past the end of the answer too.

        Args:
            messages: a conversation.
            num_tokens: of the answer.
            forced: read in place of the chosen tokens.
        """
        request = self.maker.make(messages)
        hidden_size = self.manifest.decoder.hidden_size
        embeds = encode_visuals(self.backend, request.visuals, hidden_size, lambda: False)
        image_embeds = np.concatenate([np.empty((0, hidden_size), np.float32), *embeds])
        length = len(request.input_ids)
        cache = self.backend.make_cache(1, plan_capacity([length + num_tokens]))
        logits = [self._prefill(cache, request, image_embeds)]
        call = self.backend.bind_decoder(cache, 1)
        position = int(request.position_ids.max()) + 1
        for step in range(num_tokens - 1):
            token = int(logits[-1].argmax()) if forced is None else forced[step]
            self.embeddings.gather(np.array([token]), call.inputs_embeds[:, 0])
            call.position_ids[...] = position + step
            call.seqlens_k[...] = length + step
            call.total_sequence_length[...] = length + step + 1
            call.logit_index[...] = 0
            logits.append(call.run()[0].astype(np.float32))
        stacked = np.stack(logits)
        return Observation(image_embeds, stacked, tuple(map(int, stacked.argmax(axis=1))))

    def close(self) -> None:
        """Free the graphs."""
        self.backend.close()

    def _prefill(
        self, cache: Any, request: Request, image_embeds: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The whole prompt in one call: questions are short."""
        length = len(request.input_ids)
        call = self.backend.bind_decoder(cache, length)
        self.embeddings.gather(request.input_ids, call.inputs_embeds[0])
        scatter_visual_rows(request.is_visual, image_embeds, 0, call.inputs_embeds[0])
        call.position_ids[:, 0] = request.position_ids
        call.seqlens_k[...] = length - 1
        call.total_sequence_length[...] = length
        call.logit_index[...] = length - 1
        return call.run()[0].astype(np.float32)
