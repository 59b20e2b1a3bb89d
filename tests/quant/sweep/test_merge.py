"""Shards of a data set, merged, are the whole."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.check.levels import score_tasks
from vlmedge.quant.compare.findings import (
    CheckResult,
    EmbeddingFinding,
    LayerFinding,
    LogitFinding,
    SettingFinding,
    SpeedFinding,
    TextFinding,
)
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.sweep.merge import merge_checks, take_shard

LEVELS = ("embeddings", "logits", "texts", "tasks")
SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def data_sets(draw):
    count = draw(st.integers(1, 24))
    examples = tuple(
        Example(
            f"e/{i}",
            ({"role": "user", "content": "?"},),
            answers=("x",) if draw(st.booleans()) else (),
            task=draw(st.sampled_from(["receipt", "bars", ""])),
            metric=draw(st.sampled_from(["exact_match", "anls"])),
        )
        for i in range(count)
    )
    return DataSet("data.jsonl", "ab" * 32, examples, {"bad/1": "no picture"})


def find_text(example, scores):
    reference, got = scores if example.answers else (None, None)
    task = example.task or "all"
    return TextFinding(example.id, task, "?", example.answers, "a", "b", 0, 1, 1, reference, got)


def check(data, texts, **more):
    """What an undivided check of these examples finds; two pictures an example."""
    ids = [example.id for example in data.examples]
    embeddings = tuple(
        EmbeddingFinding("image_embeds", name, bucket, 0.9, 30.0, float(len(name)), 0.1)
        for name in ids
        for bucket in ("56x56", "84x56")
    )
    logits = tuple(LogitFinding(name, (0.1,), (1.0,), (1.0,), None) for name in ids)
    texts = tuple(texts[name] for name in ids)
    return CheckResult(
        "tiny-int8",
        "tiny",
        data.name,
        data.sha256,
        len(ids),
        dict(data.skipped),
        (SettingFinding("tokens.eos", "[2]", "[3]"),),
        embeddings,
        logits,
        texts,
        score_tasks(data.examples, texts),
        environment={"machine": "Linux x86_64"},
        **more,
    )


@settings(max_examples=80, deadline=None)
@given(data_sets(), st.data())
def test_merged_shards_are_the_undivided_check(data, draw):
    count = draw.draw(st.integers(1, len(data.examples)), "shards")
    texts = {
        example.id: find_text(example, draw.draw(st.tuples(SCORES, SCORES)))
        for example in data.examples
    }
    whole = check(data, texts)
    shards = [check(take_shard(data, i, count), texts) for i in range(count)]
    order = draw.draw(st.permutations(range(count)), "order")
    merged = merge_checks([shards[i] for i in order], [], data, LEVELS)
    assert merged == whole
    for task in merged.tasks:  # the scores once more, from nothing but the definition
        pairs = [
            (Fraction(text.reference_score), Fraction(text.got_score))
            for example in data.examples
            if (text := texts[example.id]).reference_score is not None
            and (text.task, example.metric) == (task.task, task.metric)
        ]
        assert task.num_examples == len(pairs)
        assert task.reference == pytest.approx(float(100 * sum(a for a, _ in pairs)) / len(pairs))
        assert task.got == pytest.approx(float(100 * sum(b for _, b in pairs)) / len(pairs))


@given(data_sets(), st.data())
def test_shards_hold_every_example_once_and_a_like_number(data, draw):
    count = draw.draw(st.integers(1, len(data.examples)))
    shards = [take_shard(data, i, count) for i in range(count)]
    ids = [example.id for shard in shards for example in shard.examples]
    assert sorted(ids) == sorted(example.id for example in data.examples)
    sizes = [len(shard.examples) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert {(shard.name, shard.sha256) for shard in shards} == {(data.name, data.sha256)}


@pytest.fixture
def data():
    examples = tuple(
        Example(f"e/{i}", ({"role": "user", "content": "?"},), answers=("x",)) for i in range(4)
    )
    return DataSet("data.jsonl", "ab" * 32, examples, {})


@pytest.fixture
def shards(data):
    texts = {example.id: find_text(example, (1.0, 0.5)) for example in data.examples}
    return [check(take_shard(data, i, 2), texts) for i in range(2)]


def test_levels_that_were_not_asked_for_are_left_out(data, shards):
    merged = merge_checks(shards, [], data, ("embeddings", "tasks"))
    assert merged.texts == ()
    assert merged.tasks[0].got == 50
    assert merge_checks(shards, [], data, ("texts",)).tasks == ()


def test_speed_and_layers_come_from_the_whole(data, shards):
    speed = SpeedFinding("decode", "ms a token", (2.0,), (1.0,))
    layer = LayerFinding("lm_head", "int8 block 64", "text", math.inf, 30.0)
    base = replace(shards[0], embeddings=(), logits=(), texts=(), tasks=(), num_examples=4)
    wholes = [replace(base, speed=(speed,)), replace(base, layers=(layer,))]
    merged = merge_checks(shards, wholes, data, (*LEVELS, "speed", "layers"))
    assert merged.speed == (speed,)
    assert merged.layers == (layer,)
    alone = merge_checks([], wholes, data, ("speed", "layers"))
    assert (alone.speed, alone.layers, alone.texts) == ((speed,), (layer,), ())
    assert alone.num_examples == 4


def test_machines_that_differ_are_all_named(data, shards):
    shards[1] = replace(shards[1], environment={"machine": "Linux aarch64", "threads": "4"})
    merged = merge_checks(shards, [], data, LEVELS)
    assert merged.environment == {
        "machine": "Linux aarch64 | Linux x86_64",
        "threads": "4",
    }


@pytest.mark.parametrize("name", ["bundle", "reference", "data", "data_sha256"])
def test_shards_of_different_checks_are_refused(data, shards, name):
    shards[1] = replace(shards[1], **{name: "other"})
    with pytest.raises(ValueError, match=f"checks of different {name} can't be merged"):
        merge_checks(shards, [], data, LEVELS)


def test_a_missing_or_doubled_shard_is_an_error(data, shards):
    with pytest.raises(ValueError, match=r"the shards hold 2 examples, data\.jsonl 4"):
        merge_checks(shards[:1], [], data, LEVELS)
    with pytest.raises(ValueError, match="not one answer to each example"):
        merge_checks([shards[0], shards[0]], [], data, LEVELS)


def test_shards_that_cannot_be_are_refused(data):
    with pytest.raises(ValueError, match="shard 2 of 2, needed 0 to 1"):
        take_shard(data, 2, 2)
    with pytest.raises(ValueError, match="4 examples, too few for 5 shards"):
        take_shard(data, 4, 5)
