"""Logits -> the next token, by the rules of transformers' generate().

The order is theirs too: repetition penalty, temperature, top-k, top-p, then one draw. Only the draw
differs: it comes from this request's own numpy generator, so a seed gives one answer whatever else
runs, in a batch or alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import BackendError
from .options import SamplingRule

# The likeliest tokens hold nearly all probability; sorting all of a vocabulary of 152,000 would be
# most of a draw's time.
SORTED_FIRST = 1024


class Sampler:
    """Picks the tokens of one answer; knows which ones it has to make less likely."""

    def __init__(self, rule: SamplingRule, prompt_ids: NDArray[np.int64]) -> None:
        """Start an answer.

        Args:
            rule: what to do with the logits.
            prompt_ids: int64[L]; the repetition penalty counts them in, pads too, as theirs does.
        """
        self._rule = rule
        self._generator = np.random.default_rng(rule.seed)
        self._seen = set(prompt_ids.tolist()) if rule.repetition_penalty != 1.0 else None

    def pick(self, logits: NDArray[np.floating]) -> int:
        """Choose the next token.

        Args:
            logits: float[V] of one row; not changed.

        Raises:
            BackendError: the graph computed NaN or infinity.
        """
        scores = logits.astype(np.float32, copy=False)
        if not np.isfinite(highest := scores.max()):
            raise BackendError(f"the decoder's highest logit is {highest}: its weights overflow")
        if self._seen is not None:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            scores = penalize(scores, seen, self._rule.repetition_penalty)
        token_id = self._draw(scores) if self._rule.do_sample else int(scores.argmax())
        if self._seen is not None:
            self._seen.add(token_id)
        return token_id

    def _draw(self, scores: NDArray[np.float32]) -> int:
        rule = self._rule
        candidates = keep_top_k(scores, rule.top_k)
        candidate_scores = scores[candidates] / np.float32(rule.temperature)
        kept = keep_top_p(candidate_scores, rule.top_p)
        candidates, probabilities = candidates[kept], softmax(candidate_scores[kept])
        shares = probabilities.cumsum()
        place = int(np.searchsorted(shares, self._generator.random() * shares[-1], side="right"))
        return int(candidates[min(place, len(candidates) - 1)])


def penalize(
    scores: NDArray[np.float32], seen: NDArray[np.int64], penalty: float
) -> NDArray[np.float32]:
    """Make seen tokens less likely: positive scores are divided, negative ones multiplied.

    Args:
        scores: float32[V], not changed.
        seen: int64[K], without repetitions.
        penalty: over 1; under 1 it makes them likelier.
    """
    scores, factor = scores.copy(), np.float32(penalty)
    of_seen = scores[seen]
    scores[seen] = np.where(of_seen < 0, of_seen * factor, of_seen / factor)
    return scores


def keep_top_k(scores: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """Indices of the k highest scores, and of all that equal the lowest of them; 0 keeps all."""
    if not 0 < top_k < len(scores):
        return np.arange(len(scores))
    threshold = np.partition(scores, -top_k)[-top_k]
    return np.flatnonzero(scores >= threshold)


def keep_top_p(scores: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """Indices of the fewest highest scores whose probabilities reach `top_p`; at least one."""
    if top_p >= 1.0:
        return np.arange(len(scores))
    probabilities = softmax(scores)
    candidates, tail_share = np.arange(len(scores)), 0.0
    if len(scores) > SORTED_FIRST:
        top = np.argpartition(scores, -SORTED_FIRST)[-SORTED_FIRST:]
        rest = 1.0 - probabilities[top].sum()
        if rest <= 1.0 - top_p:  # none of the rest would be kept
            candidates, tail_share = top, rest
    ascending = candidates[scores[candidates].argsort(kind="stable")]
    # From the unlikely end, as theirs: what the tail up to a token holds must exceed 1 - top_p.
    tail = tail_share + probabilities[ascending].cumsum()
    first = min(int(np.searchsorted(tail, 1.0 - top_p, side="right")), len(ascending) - 1)
    return ascending[first:]


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of finite scores, in double precision: a sum over 150,000 of them."""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()
