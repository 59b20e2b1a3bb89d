"""Change logits by the generation settings, as transformers' logits processors do.

They run in the order of transformers' `_get_logits_processor`, in float32 like theirs. What only
sampling looks at (temperature, top-k, ...) is in sampling.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..options import SamplingRule
from .suffix_matches import SuffixMatches

Scores = NDArray[np.float32]
_FORBIDDEN = np.float32(-np.inf)


class Processors:
    """Changes the logits of one answer, step by step, and follows the tokens chosen."""

    def __init__(self, rule: SamplingRule, prompt_ids: NDArray[np.int64]) -> None:
        """Start an answer.

        Args:
            rule: its settings.
            prompt_ids: int64[L], pads included, as transformers has them.
        """
        self._rule = rule
        self._prompt_ids = prompt_ids
        self._num_new = 0
        self._end_ids = np.array(rule.end_ids, np.int64)
        self._suppressed = np.array(rule.suppress_tokens, np.int64)
        self._begin_suppressed = np.array(rule.begin_suppress_tokens, np.int64)
        self._forced_end = np.array(rule.forced_eos_token_id, np.int64)
        self._prompt_unique = np.unique(prompt_ids)
        self._seen = set(prompt_ids.tolist()) if rule.repetition_penalty != 1.0 else None
        self._biases = _SequenceBiases(rule.sequence_bias) if rule.sequence_bias else None
        ends = {(token_id,) for token_id in rule.end_ids}
        bad_words = [(ids, -np.inf) for ids in rule.bad_words_ids if ids not in ends]
        self._bad_words = _SequenceBiases(bad_words) if bad_words else None
        longest = max((len(ids) for ids, _ in [*rule.sequence_bias, *bad_words]), default=1)
        self._num_tail = longest - 1  # ids that sequences look back at
        self._tail = prompt_ids[len(prompt_ids) - min(len(prompt_ids), self._num_tail) :].tolist()
        repeats = rule.no_repeat_ngram_size or rule.encoder_no_repeat_ngram_size
        self._repeats = SuffixMatches(prompt_ids) if repeats else None

    def process(self, logits: Scores) -> Scores:
        """The scores of the next token.

        Args:
            logits: float32[V], not changed.

        Returns:
            float32[V]; minus infinity where a token is forbidden.
        """
        rule, scores = self._rule, logits.copy()
        if self._biases is not None:
            self._biases.add(scores, self._tail)
        if rule.encoder_repetition_penalty != 1.0:
            scores = penalize(scores, self._prompt_unique, 1 / rule.encoder_repetition_penalty)
        if self._seen is not None:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            scores = penalize(scores, seen, rule.repetition_penalty)
        if self._repeats is not None:
            if size := rule.no_repeat_ngram_size:
                scores[self._repeats.list_followers(size - 1)] = _FORBIDDEN
            if size := rule.encoder_no_repeat_ngram_size:
                followers = self._repeats.list_followers(size - 1, len(self._prompt_ids))
                scores[followers] = _FORBIDDEN
        if self._bad_words is not None:
            self._bad_words.add(scores, self._tail)
        if self._num_new < rule.min_new_tokens or (
            len(self._prompt_ids) + self._num_new < rule.min_length
        ):
            scores[self._end_ids] = _FORBIDDEN
        if len(self._forced_end) and self._num_new + 1 == rule.max_new_tokens:
            scores[:] = _FORBIDDEN
            scores[self._forced_end] = 0
        if rule.remove_invalid_values:
            highest = float(np.finfo(np.float32).max)
            np.nan_to_num(scores, copy=False, nan=0.0, posinf=highest, neginf=-highest)
        if rule.exponential_decay_length_penalty is not None:
            self._decay(scores, *rule.exponential_decay_length_penalty)
        scores[self._suppressed] = _FORBIDDEN
        if self._num_new == 0:
            scores[self._begin_suppressed] = _FORBIDDEN
        return scores

    def push(self, token_id: int) -> None:
        """The token was chosen."""
        self._num_new += 1
        if self._seen is not None:
            self._seen.add(token_id)
        if self._repeats is not None:
            self._repeats.push(token_id)
        if self._num_tail:
            self._tail = [*self._tail, token_id][-self._num_tail :]

    def _decay(self, scores: Scores, start: int, factor: float) -> None:
        """Raise the end tokens' scores by a share of their size that grows with the answer."""
        if self._num_new <= start or not len(self._end_ids):
            return
        highest = np.finfo(np.float32).max
        try:
            growth = np.float32(min(factor ** (self._num_new - start) - 1, float(highest)))
        except OverflowError:
            growth = highest
        of_ends = scores[self._end_ids]
        with np.errstate(over="ignore", invalid="ignore"):
            raised = of_ends + np.abs(of_ends) * growth
        scores[self._end_ids] = np.where(np.isfinite(of_ends), raised, of_ends)


class _SequenceBiases:
    """Adds a bias to the last token of each sequence whose other tokens have just been seen."""

    def __init__(self, biases: Sequence[tuple[tuple[int, ...], float]]) -> None:
        groups: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for ids, bias in dict(biases).items():  # of equal sequences the last one counts
            groups.setdefault(len(ids) - 1, []).append((ids, bias))
        alone = groups.pop(0, [])
        self._single_ids = np.array([ids[0] for ids, _ in alone], np.int64)
        self._single_biases = np.array([bias for _, bias in alone], np.float32)
        self._groups = [  # in the order given: sums of float32 depend on it
            (
                np.array([ids[:-1] for ids, _ in group], np.int64),
                np.array([ids[-1] for ids, _ in group], np.int64),
                np.array([bias for _, bias in group], np.float32),
            )
            for group in groups.values()
        ]

    def add(self, scores: Scores, tail: Sequence[int]) -> None:
        """Add the biases in place; `tail` are the last ids."""
        total = np.zeros_like(scores)
        total[self._single_ids] = self._single_biases
        for prefixes, last_ids, biases in self._groups:
            size = prefixes.shape[1]
            if size <= len(tail):
                hits = (prefixes == np.array(tail[len(tail) - size :], np.int64)).all(axis=1)
                np.add.at(total, last_ids[hits], biases[hits])
        scores += total


def penalize(scores: Scores, seen: NDArray[np.int64], penalty: float) -> Scores:
    """Make seen tokens less likely: positive scores are divided, negative ones multiplied.

    Args:
        scores: float32[V], not changed.
        seen: int64[K], without repetitions.
        penalty: over 1; under 1 it makes them likelier.

    Returns:
        float32[V].
    """
    scores, factor = scores.copy(), np.float32(penalty)
    of_seen = scores[seen]
    scores[seen] = np.where(of_seen < 0, of_seen * factor, of_seen / factor)
    return scores
