"""Against transformers' own logits processors, in the order generate() applies them.

Tolerance: the kept sets must be equal, probabilities differ by at most 1e-6: ours are added up in
double precision, theirs in single. Logits are drawn so that no token sits on a top-p border closer
than that.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.runtime.bundle.manifest import GenerationDefaults
from vlmedge.runtime.decode import sampling
from vlmedge.runtime.decode.processors import penalize
from vlmedge.runtime.decode.sampling import Sampler, keep_top_k, keep_top_p, softmax
from vlmedge.runtime.errors import BackendError
from vlmedge.runtime.options import GenerationOptions, SamplingRule, make_sampling_rule

VOCAB_SIZE = 50
GREEDY = SamplingRule(False, 1.0, 0, 1.0, 1.0, None)


def make_logits(seed):
    return np.random.default_rng(seed).normal(0, 3, VOCAB_SIZE).astype(np.float32)


def theirs(logits, prompt_ids, rule):
    """Probabilities by transformers."""
    import torch
    from transformers.generation import logits_process as lp

    ids, scores = torch.tensor([prompt_ids]), torch.from_numpy(logits.copy())[None]
    if rule.repetition_penalty != 1:
        scores = lp.RepetitionPenaltyLogitsProcessor(rule.repetition_penalty)(ids, scores)
    scores = lp.TemperatureLogitsWarper(rule.temperature)(ids, scores)
    if rule.top_k:
        scores = lp.TopKLogitsWarper(rule.top_k)(ids, scores)
    if rule.top_p < 1:
        scores = lp.TopPLogitsWarper(rule.top_p)(ids, scores)
    return scores.softmax(-1)[0].numpy()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, VOCAB_SIZE + 5).filter(lambda k: k != 1),
    top_p=st.sampled_from([0.05, 0.3, 0.7, 0.9, 0.99, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_draws_follow_transformers_probabilities(seed, temperature, top_k, top_p, penalty):
    logits = make_logits(seed)
    prompt_ids = np.array([1, 4, 4, 9])
    rule = SamplingRule(True, temperature, top_k, top_p, penalty, seed=0)
    needed = theirs(logits, prompt_ids.tolist(), rule)
    scores = penalize(logits, np.unique(prompt_ids), penalty)
    scores = scores / np.float32(temperature)
    kept = keep_top_k(scores, top_k)
    kept = kept[keep_top_p(scores[kept], top_p)]
    got = np.zeros(VOCAB_SIZE)
    got[kept] = softmax(scores[kept])
    assert set(np.flatnonzero(needed)) <= set(kept)
    np.testing.assert_allclose(got, needed, atol=1e-6)
    sampler = Sampler(rule, prompt_ids)
    assert needed[sampler.pick(logits)] > 0


@pytest.mark.parametrize("spread", [0.1, 3.0])  # nearly flat: more than the first must be sorted
@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999])
def test_sorting_only_the_likeliest_keeps_the_same_tokens(monkeypatch, spread, top_p):
    scores = np.random.default_rng(2).normal(0, spread, 5000).astype(np.float32)
    first = set(keep_top_p(scores, top_p))
    monkeypatch.setattr(sampling, "SORTED_FIRST", len(scores))
    assert set(keep_top_p(scores, top_p)) == first


def test_draws_have_the_right_frequencies():
    logits = make_logits(3)
    rule = SamplingRule(True, 0.9, 8, 0.95, 1.0, seed=7)
    sampler = Sampler(rule, np.array([0]))
    counts = np.bincount([sampler.pick(logits) for _ in range(20_000)], minlength=VOCAB_SIZE)
    needed = theirs(logits, [0], rule)
    # Five standard deviations of a share of 20,000 draws: the seed is fixed, it can't flake.
    assert np.abs(counts / 20_000 - needed).max() < 5 * np.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_is_the_highest_score_after_the_penalty(penalty):
    logits = np.array([1.0, 3.0, 2.9, -5.0], np.float32)
    rule = SamplingRule(False, 1.0, 0, 1.0, penalty, None)
    sampler = Sampler(rule, np.array([3]))
    assert [sampler.pick(logits), sampler.pick(logits)] == ([1, 1] if penalty == 1 else [1, 2])


def test_logits_are_left_as_they_were():
    logits = make_logits(1)
    before = logits.copy()
    Sampler(SamplingRule(True, 0.5, 5, 0.9, 1.2, 1), np.array([2])).pick(logits)
    np.testing.assert_array_equal(logits, before)


def test_one_seed_gives_one_answer_and_another_seed_another():
    def draw(seed):
        sampler = Sampler(SamplingRule(True, 2.0, 0, 1.0, 1.0, seed), np.array([0]))
        return [sampler.pick(make_logits(step)) for step in range(20)]

    assert draw(5) == draw(5) != draw(6)


def test_ties_at_the_last_of_top_k_all_stay():
    assert keep_top_k(np.array([1, 2, 2, 3], np.float32), 2).tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_that_overflowed_are_an_error(value, do_sample):
    logits = make_logits(0)
    logits[3] = value
    sampler = Sampler(SamplingRule(do_sample, 1.0, 5, 0.9, 1.0, 0), np.array([0]))
    with pytest.raises(BackendError, match="highest logit"):
        sampler.pick(logits)


SAMPLING = GenerationDefaults(do_sample=True, temperature=0.7, top_k=20, top_p=0.8)
QWEN = GenerationDefaults(do_sample=True, temperature=0.01, top_k=1, top_p=0.001)


@pytest.mark.parametrize(
    ("options", "defaults", "is_sampling"),
    [
        ({}, GenerationDefaults(), False),
        ({}, SAMPLING, True),
        ({}, QWEN, False),  # top_k 1 can only pick the likeliest
        ({"do_sample": False}, SAMPLING, False),
        ({"do_sample": True}, GenerationDefaults(), True),
        ({"temperature": 0.5}, GenerationDefaults(), True),
        ({"top_p": 0.5}, GenerationDefaults(), True),
        ({"min_p": 0.5}, GenerationDefaults(), True),
        ({"typical_p": 0.5}, GenerationDefaults(), True),
        ({"suppress_tokens": (1,)}, GenerationDefaults(), False),
        ({"ignore_defaults": True}, SAMPLING, False),
        ({"temperature": 0}, SAMPLING, False),
        ({"top_k": 1}, SAMPLING, False),
        ({"seed": 3}, GenerationDefaults(), False),
    ],
)
def test_sampling_is_on_when_the_caller_or_the_checkpoint_says_so(options, defaults, is_sampling):
    assert make_sampling_rule(GenerationOptions(**options), defaults).do_sample is is_sampling


def test_the_callers_values_go_before_the_checkpoints():
    rule = make_sampling_rule(GenerationOptions(top_k=3, repetition_penalty=1.1), SAMPLING)
    assert rule == SamplingRule(True, 0.7, 3, 0.8, 1.1, None)
