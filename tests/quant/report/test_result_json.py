"""report.json holds everything that was found, in JSON that any reader takes."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.compare.findings import (
    CheckResult,
    EmbeddingFinding,
    LayerFinding,
    LogitFinding,
    SettingFinding,
    SpeedFinding,
    TaskFinding,
    TextFinding,
)
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.report.result_json import parse_result, read_result, to_json

NUMBERS = st.floats(-1e9, 1e9)
TEXTS = st.text(st.characters(), max_size=8)  # with control characters and lone surrogates
RESULTS = st.builds(
    CheckResult,
    bundle=TEXTS,
    reference=TEXTS,
    data=TEXTS,
    data_sha256=TEXTS,
    num_examples=st.integers(0, 10**6),
    skipped=st.dictionaries(TEXTS, TEXTS, max_size=2),
    settings=st.tuples(st.builds(SettingFinding, TEXTS, TEXTS, TEXTS)),
    embeddings=st.tuples(st.builds(EmbeddingFinding, TEXTS, TEXTS, TEXTS, *[NUMBERS] * 4)),
    logits=st.tuples(
        st.builds(
            LogitFinding,
            TEXTS,
            *[st.lists(NUMBERS, max_size=3).map(tuple)] * 3,
            st.none() | st.integers(0, 9),
        )
    ),
    texts=st.tuples(
        st.builds(
            TextFinding,
            *[TEXTS] * 3,
            st.lists(TEXTS, max_size=2).map(tuple),
            *[TEXTS] * 2,
            *[st.integers(0, 99)] * 3,
            *[st.none() | NUMBERS] * 2,
            *[st.booleans()] * 2,
        )
    ),
    tasks=st.tuples(st.builds(TaskFinding, TEXTS, TEXTS, st.integers(1, 9), *[NUMBERS] * 7)),
    speed=st.tuples(
        st.builds(SpeedFinding, TEXTS, TEXTS, *[st.lists(NUMBERS, max_size=3).map(tuple)] * 2)
    ),
    layers=st.tuples(st.builds(LayerFinding, TEXTS, TEXTS, TEXTS, NUMBERS, NUMBERS)),
    environment=st.dictionaries(TEXTS, TEXTS, max_size=2),
)


def refuse_constants(name):
    raise AssertionError(f"{name} is no JSON")


@given(RESULTS)
@settings(max_examples=60, deadline=None)
def test_what_is_read_back_is_what_was_written_to_the_bit(result):
    assert parse_result(to_json(result)) == result


def test_a_whole_check_is_read_back_from_its_file(broken_check, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(to_json(broken_check), encoding="utf-8")
    assert read_result(path) == broken_check


def test_nan_and_infinity_are_null_in_the_file_and_nan_when_read(good_check):
    bad = dataclasses.replace(good_check.layers[0], own_sqnr_db=math.nan, sqnr_db=math.inf)
    logit = dataclasses.replace(
        good_check.logits[0], kl=(0.5, math.nan), top1=(1.0, 0.0), top5=(1.0, 1.0)
    )
    text = to_json(dataclasses.replace(good_check, layers=(bad,), logits=(logit,)))
    raw = json.loads(text, parse_constant=refuse_constants)
    assert raw["result"]["layers"][0]["own_sqnr_db"] is None
    assert raw["result"]["layers"][0]["sqnr_db"] is None
    assert raw["result"]["logits"][0]["kl"] == [0.5, None]
    read = parse_result(text)
    assert math.isnan(read.layers[0].own_sqnr_db)
    assert math.isnan(read.layers[0].sqnr_db)
    assert read.logits[0].kl[0] == 0.5
    assert math.isnan(read.logits[0].kl[1])


def test_the_verdict_stands_beside_the_findings(broken_check):
    gate = parse_gate("[image_embeds]\ncosine_min = 0.999\n[speed]\nvision_max = 1", "ship.toml")
    raw = json.loads(to_json(broken_check, judge(broken_check, gate)))
    assert (raw["passed"], raw["state"]) == (False, "failed")
    assert raw["gate"] == "ship.toml"
    assert [(row["key"], row["state"]) for row in raw["limits"]] == [
        ("settings.differences_max", "passed"),
        ("image_embeds.cosine_min", "failed"),
        ("speed.vision_max", "passed"),
    ]
    assert raw["guilty"] == []  # nobody has measured it
    assert [finding["layer"] for finding in raw["unusual"]] == [
        "visual.blocks.3.mlp.fc2",
        "visual.blocks.5.mlp.fc2",
    ]
    assert json.loads(to_json(broken_check))["passed"] is None


def test_a_finding_is_one_line_of_the_file(good_check):
    lines = to_json(good_check).splitlines()
    found = [line for line in lines if '"own_sqnr_db"' in line]
    assert len(found) == len(good_check.layers)
    assert json.loads(found[0].strip().rstrip(","))["layer"] == good_check.layers[0].layer


def change(text, edit):
    raw = json.loads(text)
    edit(raw)
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw.update(schema_version=1), "schema version 1, needed 2"),
        (lambda raw: raw.pop("result"), "has no object 'result'"),
        (lambda raw: raw["result"].pop("bundle"), "result lacks: bundle"),
        (lambda raw: raw["result"].update(extra=1), "unknown keys: extra"),
        (lambda raw: raw["result"].update(layers={}), "result.layers is {}, needed a list"),
        (lambda raw: raw["result"].update(layers=[3]), r"layers\[0\] is 3, needed an object"),
        (lambda raw: raw["result"]["layers"][1].pop("sqnr_db"), r"layers\[1\] lacks: sqnr_db"),
        (lambda raw: raw["result"]["layers"][0].update(bucket=None), "bucket is None, needed str"),
        (lambda raw: raw["result"]["logits"][0].update(kl="x"), "kl is 'x', needed a list"),
        (
            lambda raw: raw["result"]["speed"][0].update(got_runs=[True]),
            r"got_runs\[0\] is True, needed float",
        ),
    ],
)
def test_what_is_no_report_is_refused_by_the_key(good_check, edit, message):
    with pytest.raises(ValueError, match=message):
        parse_result(change(to_json(good_check), edit))


@pytest.mark.parametrize("text", ["", "[]", "1", "[" * 100_000, '{"result": 1}', "nul"])
def test_what_is_no_json_of_ours_is_refused(text):
    with pytest.raises(ValueError, match=r"^r\.json "):
        parse_result(text, "r.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        read_result(tmp_path / "none.json")
