"""Against the very list of processors that transformers' generate() makes of the same settings.

Scores of greedy settings must be equal to the last bit: the operations are the same ones in
float32. Of sampling the kept tokens must be the same and probabilities equal to 1e-6, since ours
are added up in double precision; logits are drawn so that none sits on a border closer than that.
"""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.runtime.decode.processors import Processors
from vlmedge.runtime.decode.sampling import Sampler, filter_scores, softmax
from vlmedge.runtime.decode.suffix_matches import SuffixMatches
from vlmedge.runtime.errors import BackendError
from vlmedge.runtime.options import SamplingRule

VOCAB_SIZE = 12  # few tokens: histories repeat, sequences are hit
END_IDS = (10, 11)
NEUTRAL = SamplingRule(False, 1.0, 0, 1.0, 1.0, None, end_ids=END_IDS)
# Of the manifest's names, those that processors don't know under the same one
_OURS = ("seed", "end_ids", "max_new_tokens")


def make_theirs(rule, prompt_ids):
    """transformers' processors of a rule."""
    import torch
    from transformers import GenerationConfig
    from transformers.generation import GenerationMixin

    values = {
        field.name: getattr(rule, field.name)
        for field in dataclasses.fields(rule)
        if field.name not in _OURS and getattr(rule, field.name) != getattr(NEUTRAL, field.name)
    }
    values = {key: _thaw(value) for key, value in values.items()}
    config = GenerationConfig(**values)
    config.do_sample = rule.do_sample
    config.max_length = len(prompt_ids) + (rule.max_new_tokens or 1000)
    config._eos_token_tensor = torch.tensor(rule.end_ids)
    model = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=False),
        _merge_criteria_processor_list=lambda default, custom: default,
    )
    return GenerationMixin._get_logits_processor(
        model,
        config,
        input_ids_seq_length=len(prompt_ids),
        encoder_input_ids=torch.tensor([prompt_ids]),
        device="cpu",
        model_kwargs={},
    )


def _thaw(value):
    return [_thaw(item) for item in value] if isinstance(value, tuple) else value


def run_both(rule, prompt_ids, seed, num_steps=6):
    """Scores of ours and of theirs, step by step along the same greedy answer."""
    import torch

    theirs, ours = make_theirs(rule, prompt_ids), Processors(rule, np.array(prompt_ids))
    generator = np.random.default_rng(seed)
    history = list(prompt_ids)
    for _ in range(num_steps):
        logits = generator.normal(0, 3, VOCAB_SIZE).astype(np.float32)
        before = logits.copy()
        got = ours.process(logits)
        np.testing.assert_array_equal(logits, before)
        needed = theirs(torch.tensor([history]), torch.from_numpy(logits.copy())[None])[0].numpy()
        yield got, needed
        token_id = int(needed.argmax())
        history.append(token_id)
        ours.push(token_id)


IDS = st.integers(0, VOCAB_SIZE - 1)
SEQUENCES = st.lists(st.lists(IDS, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)
BIASES = st.lists(
    st.tuples(st.lists(IDS, min_size=1, max_size=3).map(tuple), st.floats(-5, 5, width=32)),
    max_size=4,
).map(tuple)
RULES = st.builds(
    dataclasses.replace,
    st.just(NEUTRAL),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    encoder_repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    no_repeat_ngram_size=st.sampled_from([0, 1, 2, 3, 50, 10**9]),
    encoder_no_repeat_ngram_size=st.sampled_from([0, 1, 2, 3, 50]),
    bad_words_ids=SEQUENCES.filter(lambda words: not set(words) <= {(10,), (11,)} or not words),
    sequence_bias=BIASES,
    min_new_tokens=st.integers(0, 4),
    min_length=st.integers(0, 12),
    forced_eos_token_id=st.sampled_from([(), (3,), (10, 2)]),
    max_new_tokens=st.integers(1, 8),
    exponential_decay_length_penalty=st.none() | st.tuples(st.integers(0, 3), st.floats(0.5, 3)),
    suppress_tokens=st.lists(IDS, max_size=3).map(tuple),
    begin_suppress_tokens=st.lists(IDS, max_size=3).map(tuple),
    remove_invalid_values=st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(rule=RULES, prompt_ids=st.lists(IDS, min_size=2, max_size=9), seed=st.integers(0, 9999))
def test_scores_are_those_of_transformers_to_the_last_bit(rule, prompt_ids, seed):
    if set(rule.forced_eos_token_id) & set(rule.suppress_tokens):
        rule = dataclasses.replace(rule, forced_eos_token_id=())
    for got, needed in run_both(rule, prompt_ids, seed):
        np.testing.assert_array_equal(got, needed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_invalid_values_are_replaced_as_in_transformers(value):
    import torch

    rule = dataclasses.replace(NEUTRAL, remove_invalid_values=True)
    logits = np.array([1.0, value, -2.0, *range(9)], np.float32)
    needed = make_theirs(rule, [1, 2])(torch.tensor([[1, 2]]), torch.from_numpy(logits)[None])
    np.testing.assert_array_equal(Processors(rule, np.array([1, 2])).process(logits), needed[0])
    Sampler(rule, np.array([1, 2])).pick(logits)
    with pytest.raises(BackendError, match="highest logit"):
        Sampler(NEUTRAL, np.array([1, 2])).pick(np.full(VOCAB_SIZE, np.nan, np.float32))


LIMITS = {
    "top_k": st.integers(0, VOCAB_SIZE + 2).filter(lambda k: k != 1),
    "top_p": st.sampled_from([0.3, 0.7, 0.95, 1.0]),
    "min_p": st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    "top_h": st.sampled_from([None, 0.2, 0.5, 0.9]),
    "typical_p": st.sampled_from([0.2, 0.6, 0.95, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.0, 0.02, 0.3]),
    "eta_cutoff": st.sampled_from([0.0, 0.02, 0.3]),
}


def draw_both(rule, logits):
    import torch

    scores = make_theirs(rule, [1, 2])(torch.tensor([[1, 2]]), torch.from_numpy(logits)[None])
    ids, kept = filter_scores(logits, rule)
    got = np.zeros(len(logits))
    got[ids] = softmax(kept)
    return got, scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("name", LIMITS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), seed=st.integers(0, 9999), temperature=st.sampled_from([0.5, 1.0, 1.7]))
def test_each_limit_of_sampling_keeps_what_transformers_keeps(name, data, seed, temperature):
    rule = dataclasses.replace(
        NEUTRAL, do_sample=True, temperature=temperature, **{name: data.draw(LIMITS[name])}
    )
    logits = np.random.default_rng(seed).normal(0, 2, 300).astype(np.float32)
    got, needed = draw_both(rule, logits)
    np.testing.assert_array_equal(got > 0, needed > 0)
    np.testing.assert_allclose(got, needed, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    limits=st.fixed_dictionaries(LIMITS),
    seed=st.integers(0, 9999),
    forbidden=st.lists(st.integers(0, 39), max_size=20),
)
def test_limits_together_keep_what_transformers_keeps(limits, seed, forbidden):
    rule = dataclasses.replace(NEUTRAL, do_sample=True, temperature=0.8, **limits)
    logits = np.random.default_rng(seed).normal(0, 2, 40).astype(np.float32)
    logits[forbidden] = -np.inf  # as the processors leave it
    got, needed = draw_both(rule, logits)
    np.testing.assert_array_equal(got > 0, needed > 0)
    np.testing.assert_allclose(got, needed, atol=1e-6)


@given(
    prompt_ids=st.lists(st.integers(0, 2), max_size=12),
    more=st.lists(st.integers(0, 2), max_size=90),
    size=st.integers(0, 4),
)
def test_followers_of_the_last_ids_are_those_that_a_search_finds(prompt_ids, more, size):
    matches = SuffixMatches(np.array(prompt_ids, np.int64))
    for token_id in more:
        matches.push(token_id)
    ids = prompt_ids + more
    last = ids[len(ids) - size :] if size else []
    found = (
        [ids[end] for end in range(size, len(ids)) if ids[end - size : end] == last]
        if size <= len(ids)
        else []
    )
    assert sorted(matches.list_followers(size).tolist()) == sorted(found)


def test_settings_that_forbid_every_token_are_an_error():
    rule = dataclasses.replace(NEUTRAL, suppress_tokens=tuple(range(VOCAB_SIZE)))
    with pytest.raises(BackendError, match="forbid every token"):
        Sampler(rule, np.array([1])).pick(np.zeros(VOCAB_SIZE, np.float32))


def test_without_settings_no_processor_is_made():
    assert not NEUTRAL.changes_logits
    assert Sampler(NEUTRAL, np.array([1]))._processors is None


@pytest.mark.parametrize(
    "field",
    [f.name for f in dataclasses.fields(SamplingRule) if f.name not in ("seed", "max_new_tokens")],
)
def test_a_draw_alone_has_nothing_of_the_processors(field):
    sampled = dataclasses.replace(NEUTRAL, do_sample=True, seed=3, min_p=0.2, suppress_tokens=(1,))
    assert not sampled.draw.changes_logits
    kept = ("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p")
    if field in (*kept, "epsilon_cutoff", "eta_cutoff"):
        assert getattr(sampled.draw, field) == getattr(sampled, field)
