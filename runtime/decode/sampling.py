"""Choose the next token from logits, by the rules of transformers' generate().

The order is theirs too: the processors of processors.py, temperature, top-h, top-k, top-p, min-p,
typical-p, epsilon and eta, then one draw. Only the draw differs: it comes from this request's own
numpy generator, so a seed gives one answer whatever else runs, in a batch or alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from ..options import SamplingRule
from .processors import Processors

# The likeliest tokens hold nearly all probability; sorting all of a vocabulary of 152,000 would be
# most of a draw's time.
SORTED_FIRST = 1024
TOP_H_TOKENS = 100  # transformers looks at the entropy of no more


class Sampler:
    """Picks the tokens of one answer; knows which ones it has to make less likely."""

    def __init__(self, rule: SamplingRule, prompt_ids: NDArray[np.int64]) -> None:
        """Start an answer.

        Args:
            rule: what to do with the logits.
            prompt_ids: int64[L]; the processors count them in, pads too, as theirs do.
        """
        self._rule = rule
        self._generator = np.random.default_rng(rule.seed)
        self._processors = Processors(rule, prompt_ids) if rule.changes_logits else None

    def pick(self, logits: NDArray[np.floating]) -> int:
        """Choose the next token.

        Args:
            logits: float[V] of one row; not changed.

        Raises:
            BackendError: the graph computed NaN or infinity, or the settings forbid every token.
        """
        scores, rule = logits.astype(np.float32, copy=False), self._rule
        if not rule.remove_invalid_values and not np.isfinite(highest := scores.max()):
            raise BackendError(f"the decoder's highest logit is {highest}: its weights overflow")
        if self._processors is None:
            return self._draw(scores) if rule.do_sample else int(scores.argmax())
        scores = self._processors.process(scores)
        token_id = int(scores.argmax())
        if scores[token_id] == -np.inf:
            raise BackendError(
                "the generation settings forbid every token: look at suppress_tokens, "
                "bad_words_ids and no_repeat_ngram_size"
            )
        if rule.do_sample and scores[token_id] < np.inf:  # a length penalty may grow without end
            token_id = self._draw(scores)
        self._processors.push(token_id)
        return token_id

    def _draw(self, scores: NDArray[np.float32]) -> int:
        candidates, candidate_scores = filter_scores(scores, self._rule)
        probabilities = softmax(candidate_scores)
        shares = probabilities.cumsum()
        place = int(np.searchsorted(shares, self._generator.random() * shares[-1], side="right"))
        return int(candidates[min(place, len(candidates) - 1)])


def filter_scores(
    scores: NDArray[np.float32], rule: SamplingRule
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The tokens that may be drawn, and their scores divided by the temperature.

    Args:
        scores: float32[V], at least one of them finite.
        rule: its temperature and its limits, in transformers' order.

    Returns:
        ids: int64[K].
        scores: float32[K].
    """
    ids = np.arange(len(scores))
    if rule.top_h is not None:
        tempered = scores / np.float32(rule.temperature)
        ids = keep_top_h(tempered, rule.top_h)
        ids = ids[keep_top_k(scores[ids], rule.top_k)]
    else:
        ids = keep_top_k(scores, rule.top_k)
    kept_scores = scores[ids] / np.float32(rule.temperature)
    if kept_scores.min() == -np.inf:
        is_allowed = kept_scores > -np.inf
        ids, kept_scores = ids[is_allowed], kept_scores[is_allowed]
    for limit, off, keep in (
        (rule.top_p, (1.0,), keep_top_p),
        (rule.min_p, (0.0,), keep_min_p),
        (rule.typical_p, (1.0,), keep_typical),
        (rule.epsilon_cutoff, (0.0, 1.0), keep_epsilon),
        (rule.eta_cutoff, (0.0, 1.0), keep_eta),
    ):
        if limit not in off:
            kept = keep(kept_scores, limit)
            ids, kept_scores = ids[kept], kept_scores[kept]
    return ids, kept_scores


def keep_top_k(scores: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """Indices of the k highest scores, and of all that equal the lowest of them; 0 keeps all.

    float32[V] of finite numbers -> int64[num_kept].
    """
    if not 0 < top_k < len(scores):
        return np.arange(len(scores))
    threshold = np.partition(scores, -top_k)[-top_k]
    return np.flatnonzero(scores >= threshold)


def keep_top_p(scores: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """Indices of the fewest highest scores whose probabilities reach `top_p`; at least one.

    float32[V] -> int64[num_kept].
    """
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


def keep_min_p(scores: NDArray[np.float32], min_p: float) -> NDArray[np.intp]:
    """Indices of the scores with at least `min_p` of the likeliest one's probability.

    float32[V] -> int64[num_kept].
    """
    probabilities = softmax(scores)
    return np.flatnonzero(probabilities >= min_p * probabilities.max())


def keep_typical(scores: NDArray[np.float32], mass: float) -> NDArray[np.intp]:
    """Indices of the tokens whose information is nearest to the entropy, up to a probability.

    Locally typical sampling (arXiv 2202.00666), with all that equal the last one kept.
    float32[V] -> int64[num_kept].
    """
    probabilities = softmax(scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = -np.log(probabilities)
        distances = np.abs(information - np.nansum(probabilities * information))
    order = distances.argsort(kind="stable")
    shares = probabilities[order].cumsum()
    last = min(int((shares < mass).sum()), len(order) - 1)
    return order[distances[order] <= distances[order[last]]]


def keep_epsilon(scores: NDArray[np.float32], cutoff: float) -> NDArray[np.intp]:
    """Indices of the scores with at least this probability, and of the highest.

    float32[V] -> int64[num_kept].
    """
    return np.flatnonzero((softmax(scores) >= cutoff) | (scores >= scores.max()))


def keep_eta(scores: NDArray[np.float32], cutoff: float) -> NDArray[np.intp]:
    """Like `keep_epsilon`, with a lower bound where the entropy is high (arXiv 2210.15191).

    float32[V] -> int64[num_kept].
    """
    probabilities = softmax(scores)
    lowered = np.sqrt(cutoff) * np.exp(-_entropy(probabilities))
    return keep_epsilon(scores, min(cutoff, float(lowered)))


def keep_top_h(scores: NDArray[np.float32], top_h: float) -> NDArray[np.intp]:
    """Indices of the likeliest tokens that together hold a share of the entropy; at least one.

    Only the 100 likeliest are looked at, and their entropy alone counts.
    float32[V] -> int64[num_kept].
    """
    order = scores.argsort(kind="stable")[::-1][:TOP_H_TOKENS]
    order = order[scores[order] > -np.inf]
    probabilities = softmax(scores[order])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.nan_to_num(-probabilities * np.log(probabilities))
    is_kept = terms.cumsum() <= top_h * terms.sum()
    is_kept[0] = True
    return order[is_kept]


def _entropy(probabilities: NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(-np.nansum(probabilities * np.log(probabilities)))


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of finite scores, in double precision: a sum over 150,000 of them.

    float32[V] -> float64[V].
    """
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()
