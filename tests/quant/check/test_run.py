"""The check end to end on tiny bundles: equal ones, quantized ones, broken ones."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.check import run as check
from vlmedge.quant.check.plan import LEVELS, CheckPlan
from vlmedge.quant.check.run import pick_evenly, run_check
from vlmedge.quant.compare.observe import BundleSide
from vlmedge.quant.compare.reference import NotFiniteError
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.runtime import BundleError


def ask(name, size=None, question="What?", **fields):
    parts = [{"type": "text", "text": question}]
    if size:
        levels = np.random.default_rng(len(name)).integers(0, 256, (*size, 3), np.uint8)
        parts.insert(0, {"type": "image", "image": Image.fromarray(levels)})
    return Example(name, ({"role": "user", "content": parts},), **fields)


@pytest.fixture(scope="module")
def float_bundle(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def int4_bundle(make_bundle):
    return make_bundle("tiny", "int4").bundle


@pytest.fixture(scope="module")
def data(float_bundle):
    """Three questions; the float bundle answers one of the two labelled ones right."""
    side = BundleSide(float_bundle, 1)
    first = ask("wide", (60, 90), task="t")
    right = side.observe(first, 8).text.strip()
    side.close()
    examples = (
        dataclasses.replace(first, answers=(right,)),
        ask("tall!", (112, 56), task="t", answers=("no model says this",)),
        ask("text", question="Why?"),
    )
    return DataSet("three.jsonl", "ab" * 32, examples, {"gone": "picture x.png is missing"})


PLAN = CheckPlan(max_new_tokens=8, num_speed_runs=1, num_threads=1)
TEXTS = CheckPlan(("texts",), 8, 1, 1)
SEEN = CheckPlan(("embeddings", "logits", "texts", "tasks"), 8, 1, 1)


def test_a_bundle_against_itself_differs_nowhere(float_bundle, data):
    result = run_check(float_bundle, float_bundle, data, SEEN)
    assert (result.bundle, result.reference) == (float_bundle.name, float_bundle.name)
    assert (result.data, result.data_sha256, result.num_examples) == ("three.jsonl", "ab" * 32, 3)
    assert result.skipped == {"gone": "picture x.png is missing"}
    assert [(f.example, f.level, f.bucket) for f in result.embeddings] == [
        (name, level, bucket)
        for name, bucket in (("wide", "84x56"), ("tall!", "56x112"))
        for level in ("pixel_values", "before_merger", "image_embeds")
    ]
    assert {f.sqnr_db for f in result.embeddings} == {200.0}
    for finding in result.logits:
        assert set(finding.top1) == set(finding.top5) == {1.0}
        assert max(finding.kl) == 0
        assert finding.first_divergence is None
    for finding in result.texts:
        assert finding.got == finding.reference
        assert finding.common_prefix == finding.num_tokens > 0
    (task,) = result.tasks
    assert (task.task, task.num_examples, task.reference, task.got) == ("t", 2, 50, 50)
    assert result.layers == result.speed == ()
    assert result.environment["threads"] == "1"


def test_every_level_is_measured_between_two_bundles(float_bundle, int4_bundle, data):
    steps = []
    result = run_check(int4_bundle, float_bundle, data, PLAN, lambda *step: steps.append(step))
    levels = {f.level: f.rel_l2 for f in result.embeddings}
    assert levels["pixel_values"] == 0 < levels["image_embeds"] < 1
    assert all(kl > 0 for finding in result.logits for kl in finding.kl)
    assert len(result.texts) == 3
    assert {f.what for f in result.speed} == {"vision", "prefill", "decode", "peak_memory"}
    layers = {f.layer: f.precision for f in result.layers}
    assert len(layers) == 2 * 4 + 2 + 2 * 4 + 1
    assert layers["model.layers.0.self_attn.o_proj"] == "int4 block 64"
    assert all(1 < f.own_sqnr_db < 60 for f in result.layers)
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert {step[1] for step in steps} == {done[-1] + 1}
    assert all(step[2] for step in steps)


def test_logits_are_compared_along_the_references_answer(float_bundle, int4_bundle, data):
    result = run_check(int4_bundle, float_bundle, data, SEEN)
    theirs, ours = BundleSide(float_bundle, 1), BundleSide(int4_bundle, 1)
    for example, logits, text in zip(data.examples, result.logits, result.texts, strict=True):
        needed = theirs.observe(example, 8)
        assert len(logits.kl) == len(needed.token_ids) == text.num_tokens
        forced = ours.observe(example, 8, forced=needed.token_ids)
        best = forced.logits.argmax(axis=1)
        assert [bool(x) for x in logits.top1] == (best == needed.token_ids).tolist()
        assert text.got == ours.observe(example, 8).text
        same = text.common_prefix == text.num_tokens
        assert logits.first_divergence == (None if same else text.common_prefix)


def test_transformers_is_a_reference_too(make_bundle, data):
    made = make_bundle("tiny", "int8")
    result = run_check(made.bundle, made.checkpoint, data, PLAN)
    assert result.reference == "transformers, checkpoint"
    assert not result.speed
    own = {f.layer: f.own_sqnr_db for f in result.layers}
    assert len(own) == 19
    assert all(25 < value < 60 for value in own.values())
    assert max(f.rel_l2 for f in result.embeddings if f.level == "image_embeds") < 0.1


@pytest.mark.parametrize(
    ("levels", "filled"),
    [
        (("embeddings",), {"embeddings"}),
        (("logits",), {"logits"}),
        (("texts",), {"texts"}),
        (("tasks",), {"tasks"}),
        (("layers",), {"layers"}),
        (("speed", "layers"), {"speed", "layers"}),
    ],
)
def test_only_what_was_asked_for_is_measured(float_bundle, data, levels, filled, monkeypatch):
    monkeypatch.setattr(check, "measure_speed", lambda *_, **__: ("a figure",))
    result = run_check(float_bundle, float_bundle, data, CheckPlan(levels, 4, 1, 1))
    assert {level for level in LEVELS if getattr(result, level)} == filled | {"settings"}


def test_pictures_alone_need_no_decoder(float_bundle, data, monkeypatch):
    monkeypatch.setattr(BundleSide, "_answer", lambda *_: pytest.fail("the decoder was run"))
    run_check(float_bundle, float_bundle, data, CheckPlan(("embeddings",), 4, 1, 1))


def test_a_missing_bundle_is_told_before_the_reference_is_opened(tmp_path, data, monkeypatch):
    monkeypatch.setattr(check, "open_checkpoint", lambda *_: pytest.fail("opened"))
    with pytest.raises(BundleError, match="no such directory"):
        run_check(tmp_path / "none", "checkpoint", data, PLAN)


def test_an_example_that_fails_is_named(float_bundle, data):
    long = ask("long", question="?" * 50_000)
    with pytest.raises(ValueError, match=r"fp32, example long: .*context"):
        run_check(float_bundle, float_bundle, dataclasses.replace(data, examples=(long,)), TEXTS)


def test_values_that_are_no_numbers_are_named_with_their_layer(float_bundle, data, monkeypatch):
    observe = BundleSide.observe

    def spoil(self, example, max_new_tokens, *, is_plain=False, forced=()):
        if forced and example.id == "tall!":
            raise NotFiniteError("logits hold NaN or infinity")
        return observe(self, example, max_new_tokens, forced=forced)

    monkeypatch.setattr(BundleSide, "observe", spoil)
    monkeypatch.setattr(check, "find_not_finite", lambda bundle, example: f"{example.id}: fc1")
    with pytest.raises(ValueError, match=r"example tall!: logits hold NaN or infinity; tall!: fc1"):
        run_check(float_bundle, float_bundle, data, SEEN)


def test_the_reference_is_closed_before_the_bundle_is_opened(float_bundle, data, monkeypatch):
    log = []
    opened, closed = BundleSide.__init__, BundleSide.close
    monkeypatch.setattr(
        BundleSide, "__init__", lambda self, *args: log.append("open") or opened(self, *args)
    )
    monkeypatch.setattr(BundleSide, "close", lambda self: log.append("close") or closed(self))
    run_check(float_bundle, float_bundle, data, CheckPlan(("texts",), 2, 1, 1))
    assert log == ["open", "close", "open", "close"]


def test_examples_are_picked_from_all_over_the_data():
    examples = [ask(str(i)) for i in range(10)]
    assert [e.id for e in pick_evenly(examples, 4)] == ["0", "2", "5", "7"]
    assert pick_evenly(examples, 40) == examples
