"""What a gate's metrics measure, by hand-made findings."""

import dataclasses
import math

import numpy as np
import pytest

from vlmedge.quant.compare.findings import (
    CheckResult,
    EmbeddingFinding,
    LayerFinding,
    LogitFinding,
    SpeedFinding,
    TaskFinding,
    TextFinding,
)
from vlmedge.quant.gate.metrics import METRICS, list_places, select_findings

EMPTY = CheckResult("ours", "theirs", "data", "0" * 64, 2, {})


def embedding(level="image_embeds", example="a", bucket="448x448", **numbers):
    values = {"cosine": 1.0, "sqnr_db": 40.0, "max_abs": 0.1, "rel_l2": 0.01} | numbers
    return EmbeddingFinding(level, example, bucket, **values)


def text(got="abc", **fields):
    values = {
        "example": "a",
        "task": "t",
        "question": "?",
        "answers": (),
        "reference": "abc",
        "got": got,
        "common_prefix": 3,
        "num_tokens": 3,
        "edit_distance": 0,
        "reference_score": None,
        "got_score": None,
    }
    return TextFinding(**values | fields)


def measure(result, level, metric, where=""):
    return METRICS[level][metric].measure(select_findings(result, level, metric, where))


def test_the_worst_case_counts_and_is_named_unless_the_name_says_mean():
    result = dataclasses.replace(
        EMPTY,
        embeddings=(
            embedding(cosine=0.99, sqnr_db=20, rel_l2=0.2, max_abs=3),
            embedding(example="b", bucket="84x84", cosine=0.9, sqnr_db=10, rel_l2=0.1, max_abs=5),
            embedding("before_merger", cosine=0.1),
        ),
    )
    assert measure(result, "image_embeds", "cosine") == (0.9, "b, 84x84")
    assert measure(result, "image_embeds", "sqnr_db") == (10, "b, 84x84")
    assert measure(result, "image_embeds", "rel_l2") == (0.2, "a, 448x448")
    assert measure(result, "image_embeds", "max_abs") == (5, "b, 84x84")
    assert measure(result, "image_embeds", "cosine_mean") == (pytest.approx(0.945), "")
    assert measure(result, "image_embeds", "rel_l2_mean").value == pytest.approx(0.15)
    assert measure(result, "image_embeds", "sqnr_db_mean").value == 15
    assert measure(result, "image_embeds", "cosine", "448x448").value == 0.99
    assert measure(result, "before_merger", "cosine").value == 0.1
    assert list_places(result, "image_embeds") == ["448x448", "84x84"]
    assert select_findings(result, "pixel_values", "cosine", "") == []


def test_not_a_number_is_the_worst_of_all():
    result = dataclasses.replace(
        EMPTY,
        embeddings=(embedding(), embedding(example="bad", cosine=math.nan, rel_l2=math.nan)),
        logits=(
            LogitFinding("a", (0.1,), (1.0,), (1.0,), None),
            LogitFinding("bad", (9.0, math.nan), (1.0, 0.0), (1.0, 1.0), 1),
        ),
    )
    for level, metric in (
        ("image_embeds", "cosine"),
        ("image_embeds", "cosine_mean"),
        ("image_embeds", "rel_l2"),
        ("logits", "kl"),
        ("logits", "kl_mean"),
        ("logits", "kl_p99"),
    ):
        assert math.isnan(measure(result, level, metric).value)
    assert measure(result, "image_embeds", "cosine").place == "bad, 448x448"
    assert measure(result, "logits", "kl").place == "bad"


def test_logits_are_counted_by_position():
    logits = (
        LogitFinding("a", (0.0, 0.1, 0.2), (1.0, 1.0, 0.0), (1.0, 0.8, 0.6), 2),
        LogitFinding("b", (0.5,), (1.0,), (0.6,), None),
    )
    result = dataclasses.replace(EMPTY, logits=logits)
    assert measure(result, "logits", "kl") == (0.5, "b")
    assert measure(result, "logits", "kl_mean").value == pytest.approx(0.2)
    needed = np.percentile([0.0, 0.1, 0.2, 0.5], 99)
    assert measure(result, "logits", "kl_p99").value == pytest.approx(needed)
    assert measure(result, "logits", "top1").value == 0.75
    assert measure(result, "logits", "top5").value == pytest.approx(0.75)
    assert measure(result, "logits", "first_divergence") == (2, "a")
    assert measure(result, "logits", "never_part") == (0.5, "1 of 2 examples parts")


def test_examples_that_never_part_hold_any_limit_on_where_they_part():
    result = dataclasses.replace(EMPTY, logits=(LogitFinding("a", (0.0,), (1.0,), (1.0,), None),))
    assert measure(result, "logits", "first_divergence").value == math.inf
    assert measure(result, "logits", "never_part").value == 1


def test_one_position_of_one_answer_is_told_as_one():
    result = dataclasses.replace(EMPTY, logits=(LogitFinding("a", (0.0,), (1.0,), (1.0,), None),))
    assert measure(result, "logits", "kl_mean").place == "1 position of 1 answer"


def test_logits_without_a_position_measure_nothing():
    result = dataclasses.replace(EMPTY, logits=(LogitFinding("a", (), (), (), None),))
    assert math.isnan(measure(result, "logits", "kl").value)
    assert math.isnan(measure(result, "logits", "kl_mean").value)


def test_texts_are_compared_whole_and_from_the_start():
    texts = (
        text(),
        text("abd", example="b", task="u", common_prefix=1, num_tokens=4, edit_distance=1),
        text("x", example="c", reference="", common_prefix=0, num_tokens=0, edit_distance=5),
        text("", example="d", reference="", common_prefix=0, num_tokens=0),
    )
    result = dataclasses.replace(EMPTY, texts=texts)
    assert measure(result, "text", "exact_match") == (0.5, "2 of 4 answers are equal")
    one = dataclasses.replace(EMPTY, texts=texts[:1])
    assert measure(one, "text", "exact_match") == (1, "1 of 1 answer is equal")
    assert measure(one, "text", "unended").place.startswith("0 of 1 answer did not end")
    # An empty reference answer is met by an empty one alone
    assert measure(result, "text", "common_prefix").value == pytest.approx((1 + 0.25 + 0 + 1) / 4)
    assert measure(result, "text", "edit_distance") == (5, "c")
    assert measure(result, "text", "edit_distance_mean").value == 1.5
    assert measure(result, "text", "exact_match", "u").value == 0


def test_tasks_lose_points_on_the_mean_and_in_the_worst():
    tasks = (
        TaskFinding("a", "anls", 10, 90, 89, -2, 0, 0.1, 0, 0.1),
        TaskFinding("b", "anls", 10, 50, 53, 1, 5, 0, 0.3, 0.3),
    )
    result = dataclasses.replace(EMPTY, tasks=tasks)
    assert measure(result, "tasks", "loss").value == -1
    assert measure(result, "tasks", "worst_loss") == (1, "a")
    assert measure(result, "tasks", "score").value == 71
    assert measure(result, "tasks", "loss", "b").value == -3


def test_speed_is_a_ratio_to_the_reference():
    speed = (
        SpeedFinding("vision", "ms", (10,), (12,)),
        SpeedFinding("peak_memory", "MiB", (4000,), (1000,)),
    )
    result = dataclasses.replace(EMPTY, speed=speed)
    assert measure(result, "speed", "vision") == (pytest.approx(1.2), "12 against 10 ms")
    assert measure(result, "speed", "peak_memory").value == pytest.approx(0.25)
    assert select_findings(result, "speed", "decode", "") == []


def test_layers_name_the_worst_one():
    layers = (
        LayerFinding("visual.merger.mlp.0", "int8 static", "448x448", 30, 25),
        LayerFinding("lm_head", "int8 block 128", "text", 28, 20),
    )
    result = dataclasses.replace(EMPTY, layers=layers)
    assert measure(result, "layers", "own_sqnr_db") == (28, "lm_head, int8 block 128, text")
    assert measure(result, "layers", "sqnr_db", "448x448").value == 25


def test_every_metric_says_what_it_means():
    for level, metrics in METRICS.items():
        assert metrics, level
        for name, metric in metrics.items():
            assert metric.meaning, name
            assert metric.low < metric.high
