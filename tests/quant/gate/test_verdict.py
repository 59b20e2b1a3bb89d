"""Limits held against findings, and the layers that are to blame."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.compare.findings import (
    CheckResult,
    EmbeddingFinding,
    LayerFinding,
    SettingFinding,
    SpeedFinding,
    TaskFinding,
)
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.statistics import score_task
from vlmedge.quant.gate.unusual import describe_layer, find_unusual
from vlmedge.quant.gate.verdict import judge, tell_apart

SAME = (SettingFinding("tokens.eos", "[2]", "[2]"),)
EMPTY = CheckResult("ours", "theirs", "data", "0" * 64, 1, {}, settings=SAME)


def make_layers(values, precision="int8 static", kind="visual.blocks.{}.mlp.fc2", bucket="448x448"):
    return tuple(
        LayerFinding(kind.format(i), precision, bucket, float(value), 20.0)
        for i, value in enumerate(values)
    )


def embedding(cosine, bucket="448x448"):
    return EmbeddingFinding("image_embeds", "a", bucket, cosine, 40.0, 0.1, 0.01)


def spread(n, centre, seed=0):
    return centre + np.random.default_rng(seed).normal(0, 1.0, n)


def test_a_limit_holds_at_its_own_value_and_fails_beyond():
    gate = parse_gate("[image_embeds]\ncosine_min = 0.99\nrel_l2_max = 0.01")
    passed = judge(dataclasses.replace(EMPTY, embeddings=(embedding(0.99),)), gate)
    assert passed.passed
    assert passed.state == "passed"
    assert passed.failed == ()
    failed = judge(dataclasses.replace(EMPTY, embeddings=(embedding(0.98999),)), gate)
    assert not failed.passed
    assert failed.state == "failed"
    assert [row.message for row in failed.failed] == [
        "image_embeds.cosine_min: got 0.98999, needed at least 0.99 (a, 448x448)"
    ]


def test_not_a_number_fails_every_limit():
    gate = parse_gate("[image_embeds]\ncosine_min = -1\nrel_l2_max = 1e9")
    nan = EmbeddingFinding("image_embeds", "a", "448x448", *[math.nan] * 4)
    verdict = judge(dataclasses.replace(EMPTY, embeddings=(nan,)), gate)
    assert [row.state for row in verdict.rows] == ["passed", "failed", "failed"]
    assert "not a number" in verdict.rows[1].message


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("[logits]\nkl_max = 1", "logits was not measured"),
        ("[speed]\ndecode_max = 1", "speed.decode was not measured"),
        (
            "[image_embeds.448x484]\ncosine_min = 0.5",
            "image_embeds.448x484 was not measured, did you mean '448x448'",
        ),
        ("[image_embeds.x]\ncosine_min = 0.5", r"not measured \(448x448 were\)"),
        ("[tasks.receipt]\nloss_max = 1", "tasks.receipt was not measured"),
    ],
)
def test_what_was_not_measured_is_an_error_and_no_pass(gate, message):
    result = dataclasses.replace(
        EMPTY, embeddings=(embedding(1.0),), speed=(SpeedFinding("vision", "ms", (1,), (1,)),)
    )
    with pytest.raises(ValueError, match=message):
        judge(result, parse_gate(gate))


def test_a_bucket_can_fail_alone():
    gate = parse_gate("[image_embeds]\ncosine_min = 0.9\n[image_embeds.84x84]\ncosine_min = 0.99")
    found = (embedding(0.95), embedding(0.98, "84x84"))
    verdict = judge(dataclasses.replace(EMPTY, embeddings=found), gate)
    assert [(row.where, row.ok) for row in verdict.rows[1:]] == [("", True), ("84x84", False)]


@pytest.mark.parametrize("got", [0.9997, 0.99996, 1.0])
def test_a_limit_is_not_rounded(got):
    assert tell_apart(got, 0.9999999) == (f"{got:.5g}", "0.9999999")
    assert tell_apart(0.9999999, 0.9999999) == ("0.9999999", "0.9999999")


def test_an_undecided_limit_is_neither_a_pass_nor_anybodys_guilt():
    layers = (*make_layers(spread(20, 34)), *make_layers([3.0], kind="visual.merger.mlp.{}"))
    tasks = (score_task("t", "anls", [1.0] * 20, [1.0] * 20),)
    gate = parse_gate("[tasks]\nloss_max = 1\nnon_inferior = true")
    verdict = judge(dataclasses.replace(EMPTY, tasks=tasks, layers=layers), gate)
    assert (verdict.state, verdict.passed) == ("undecided", False)
    assert (verdict.failed, verdict.guilty) == ((), ())
    assert verdict.unmet == verdict.undecided != ()
    both = parse_gate("[tasks]\nloss_max = 1\nnon_inferior = true\n[layers]\nsqnr_db_min = 90")
    verdict = judge(dataclasses.replace(EMPTY, tasks=tasks, layers=layers), both)
    assert verdict.state == "failed"
    assert len(verdict.unmet) == 2
    assert [finding.layer for finding in verdict.suspects] == ["visual.merger.mlp.0"]


def test_a_gate_is_not_judged_without_the_settings():
    bare = dataclasses.replace(EMPTY, settings=(), embeddings=(embedding(1.0),))
    with pytest.raises(ValueError, match="settings was not measured"):
        judge(bare, parse_gate("[image_embeds]\ncosine_min = 0"))


def test_a_setting_that_differs_fails_every_gate_unless_it_is_allowed():
    settings = (*SAME, SettingFinding("mrope_rule", '"paper"', '"transformers>=5.3"'))
    result = dataclasses.replace(EMPTY, settings=settings, embeddings=(embedding(1.0),))
    plain = "[image_embeds]\ncosine_min = 0\n"
    (row,) = judge(result, parse_gate(plain)).failed
    assert row.message == "settings.differences_max: got 1, needed at most 0 (mrope_rule)"
    assert judge(result, parse_gate(plain + "[settings]\nallow = ['mrope_rule']")).passed
    assert not judge(result, parse_gate(plain + "[settings]\nallow = ['tokens.eos']")).passed
    assert judge(result, parse_gate(plain + "[settings]\ndifferences_max = 1")).passed


def test_planted_layers_are_found_and_ranked():
    layers = list(make_layers(spread(128, 34)))
    for index, value in ((7, 12.0), (90, 7.1)):
        layers[index] = dataclasses.replace(layers[index], own_sqnr_db=value)
    assert [describe_layer(f) for f in find_unusual(layers)] == [
        "visual.blocks.90.mlp.fc2 (int8 static, 7.1 dB)",
        "visual.blocks.7.mlp.fc2 (int8 static, 12.0 dB)",
    ]


def test_no_layer_sticks_out_of_an_even_spread():
    assert find_unusual(make_layers(spread(240, 34))) == ()


def test_a_wide_spread_of_a_kind_hides_what_a_narrow_one_shows():
    """9 dB under the median: beyond 4 sigma of 1 dB, within those of 4 dB."""
    narrow, wide = spread(60, 30), 30 + 4 * (spread(60, 30) - 30)
    low = make_layers([21.0], kind="visual.blocks.{}.mlp.fc1")
    assert find_unusual((*make_layers(narrow), *low)) == low
    assert find_unusual((*make_layers(wide), *low)) == ()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_spread_of_any_seed_blames_nobody(seed):
    assert find_unusual(make_layers(spread(60, 30, seed))) == ()


def test_four_bits_are_not_blamed_beside_eight():
    """Their error is larger by their nature: each is held against its own kind."""
    layers = make_layers(spread(128, 36)) + make_layers(
        spread(112, 19, 1), "int4 block 64", "model.layers.{}.mlp.down_proj"
    )
    assert find_unusual(layers) == ()
    worse = dataclasses.replace(layers[200], own_sqnr_db=11.5)
    assert find_unusual((*layers, worse)) == (worse,)


def test_the_only_two_layers_of_a_precision_are_held_against_all():
    layers = make_layers(spread(100, 36)) + make_layers([14, 13], "int4 block 64", "model.{}.o")
    assert [f.layer for f in find_unusual(layers)] == ["model.1.o", "model.0.o"]


def test_a_recipe_that_broke_most_layers_has_them_all_named():
    layers = make_layers([*spread(60, 4), *spread(30, 35)])
    assert len(find_unusual(layers)) == 60


def test_float_layers_are_never_blamed():
    layers = make_layers([200, 200, 200, 200, 118, 200], "float32")
    assert find_unusual(layers) == ()


def test_a_layer_of_nan_is_the_guiltiest():
    layers = make_layers([*spread(20, 34), math.nan, 5])
    assert [f.layer for f in find_unusual(layers)] == [
        "visual.blocks.20.mlp.fc2",
        "visual.blocks.21.mlp.fc2",
    ]


def test_a_layer_is_named_once_in_its_worst_bucket():
    layers = make_layers(spread(20, 34)) + make_layers(spread(20, 33), bucket="1092x1092")
    bad = [
        dataclasses.replace(layers[25], own_sqnr_db=v, bucket=b) for v, b in ((9, "x"), (8, "y"))
    ]
    assert find_unusual((*layers, *bad)) == (bad[1],)


def test_layers_are_suspected_only_of_what_a_layer_can_do():
    layers = list(make_layers(spread(20, 34)))
    layers[3] = dataclasses.replace(layers[3], own_sqnr_db=3.0)
    decoder = list(make_layers(spread(20, 34), kind="model.layers.{}.mlp.down_proj"))
    decoder[5] = dataclasses.replace(decoder[5], own_sqnr_db=2.0)
    result = dataclasses.replace(
        EMPTY,
        embeddings=(embedding(0.5),),
        tasks=(TaskFinding("t", "anls", 9, 90, 10, -90, -70, 7.2, 0, 6.0),),
        speed=(SpeedFinding("vision", "ms", (1, 1), (2, 2)),),
        layers=(*layers, *decoder),
    )

    def suspect(gate):
        verdict = judge(result, parse_gate(gate))
        assert verdict.guilty == ()
        assert [finding.layer for finding in verdict.unusual] == [text, vision]
        return [finding.layer for finding in verdict.suspects]

    vision, text = "visual.blocks.3.mlp.fc2", "model.layers.5.mlp.down_proj"
    assert suspect("[speed]\nvision_max = 1") == []
    assert suspect("[image_embeds]\ncosine_min = 0.4") == []  # passed
    assert suspect("[image_embeds]\ncosine_min = 0.9") == [vision]
    assert suspect("[tasks]\nloss_max = 1") == [text, vision]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@settings(max_examples=200, deadline=None)
def test_two_numbers_that_differ_never_look_equal(got, limit):
    first, second = tell_apart(got, limit)
    assert (first == second) == (got == limit)


@pytest.mark.parametrize(
    ("got", "limit", "texts"),
    [
        (0.98, 0.999, ("0.98", "0.999")),
        (0.99899999, 0.999, ("0.99899999", "0.999")),
        (0.5, 0.5, ("0.5", "0.5")),
        (math.nan, 1.0, ("nan", "1")),
    ],
)
def test_numbers_have_the_digits_they_need(got, limit, texts):
    assert tell_apart(got, limit) == texts
