"""Errors between two engines, and the questions they are asked."""

import numpy as np
import pytest
from gpu_check.compare import (
    find_reference,
    judge,
    list_questions,
    measure_error,
    observe_all,
    read_observations,
    write_observations,
)
from gpu_check.observe import Observation
from PIL import Image


def observe(seed=0, scale=0.0):
    rng, other = np.random.default_rng(0), np.random.default_rng(seed + 1)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 8), (3, 50))]
    embeds, logits = (a + scale * other.standard_normal(a.shape).astype(a.dtype) for a in arrays)
    return Observation(embeds, logits, tuple(map(int, logits.argmax(axis=1))))


def test_an_error_is_relative_to_what_was_needed():
    needed = np.array([[3.0, 4.0]], np.float32)
    assert measure_error(needed * np.float32(1.1), needed) == pytest.approx(0.1, rel=1e-5)
    assert measure_error(1000 * needed * np.float32(1.1), 1000 * needed) == pytest.approx(
        0.1, rel=1e-5
    )
    assert measure_error(needed, needed) == 0


def test_equal_sides_pass_with_all_tokens():
    figures = judge([observe()], [observe()], 0.01)
    assert "failure" not in figures
    assert (figures["equal_tokens"], figures["tokens"]) == (3, 3)


def test_a_difference_beyond_the_limit_fails_and_says_how_large_it_is():
    figures = judge([observe(scale=0.2)], [observe()], 0.01)
    assert figures["image_embeds_error"] == pytest.approx(0.2, rel=0.5)
    assert "at most 0.01" in figures["failure"]
    assert "failure" not in judge([observe(scale=0.2)], [observe()], 0.5)


def test_the_worst_question_counts():
    good, bad = observe(), observe(scale=0.5)
    assert "failure" in judge([good, bad], [good, good], 0.1)


def test_numbers_that_are_none_fail():
    broken = observe()
    broken.logits[0, 0] = np.nan
    assert not broken.is_finite
    assert "failure" in judge([broken], [observe()], 0.1)


def test_what_is_kept_comes_back(make_config):
    path = find_reference(make_config(), "fp16")
    seen = [observe(i, 0.1) for i in range(12)]
    write_observations(path, seen)
    for a, b in zip(read_observations(path), seen, strict=True):
        np.testing.assert_array_equal(a.image_embeds, b.image_embeds)
        np.testing.assert_array_equal(a.logits, b.logits)
        assert a.token_ids == b.token_ids


def test_questions_are_about_single_pictures_that_are_there():
    questions = list_questions()
    assert len(questions) >= 5
    for (message,) in questions:
        picture, text = message["content"]
        Image.open(picture["image"]).load()
        assert text["text"]


def test_two_runs_of_one_engine_agree(make_bundle):
    bundle = make_bundle("tiny").bundle
    needed = observe_all(bundle, "cpu", None)
    figures = judge(observe_all(bundle, "cpu", needed), needed, 1e-6)
    assert "failure" not in figures
    assert figures["equal_tokens"] == figures["tokens"]
