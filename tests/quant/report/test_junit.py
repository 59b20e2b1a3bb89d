"""junit.xml by the rules of the published schema (jenkinsci/xunit-plugin, junit-10.xsd)."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.compare.findings import CheckResult, LayerFinding, SettingFinding, TaskFinding
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.quant.report.junit import to_junit

# element -> required attributes, allowed attributes, allowed children
SCHEMA = {
    "testsuites": ((), ("name", "time", "tests", "failures", "errors"), ("testsuite",)),
    "testsuite": (
        ("name", "tests", "failures", "errors"),
        ("name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname", "id"),
        ("testsuite", "properties", "testcase", "system-out", "system-err"),
    ),
    "properties": ((), (), ("property",)),
    "property": (("name", "value"), ("name", "value"), ()),
    "testcase": (
        ("name",),
        ("name", "time", "classname", "group"),
        ("skipped", "error", "failure", "system-out", "system-err"),
    ),
    "failure": ((), ("type", "message"), ()),
}


def check_schema(element):
    required, allowed, children = SCHEMA[element.tag]
    assert set(required) <= set(element.attrib) <= set(allowed), element.tag
    for child in element:
        assert child.tag in children
        check_schema(child)


def read_junit(text):
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    check_schema(root)
    for suite in (root, *root.iter("testsuite")):
        assert int(suite.get("tests")) == len(list(suite.iter("testcase")))
        assert int(suite.get("failures")) == len(list(suite.iter("failure")))
        assert suite.get("errors") == "0"
    return root


SAME = (SettingFinding("tokens.eos", "[2]", "[2]"),)
GATE = parse_gate(
    "[image_embeds]\ncosine_min = 0.999\nrel_l2_max = 100\n[tasks]\nloss_max = 100\n"
    "[tasks.receipt]\nscore_min = 100\n[layers]\nown_sqnr_db_min = 15"
)


def test_a_level_is_a_suite_and_a_limit_is_a_case(broken_check):
    root = read_junit(to_junit(broken_check, judge(broken_check, GATE)))
    assert {suite.get("name"): suite.get("tests") for suite in root} == {
        "settings": "1",
        "image_embeds": "2",
        "tasks": "2",
        "layers": "1",
    }
    cases = {case.get("name"): case.find("failure") for case in root.iter("testcase")}
    assert cases["image_embeds.rel_l2_max"] is None
    assert cases["tasks.loss_max"] is None
    failure = cases["layers.own_sqnr_db_min"]
    assert failure.get("message").startswith("layers.own_sqnr_db_min: got ")
    assert "needed at least 15 dB" in failure.get("message")
    assert "guilty: visual.blocks.3.mlp.fc2 (int8 static, " in failure.text


def test_a_gate_that_holds_has_no_failure(good_check):
    verdict = judge(good_check, parse_gate("[layers]\nown_sqnr_db_min = 5"))
    assert read_junit(to_junit(good_check, verdict)).get("failures") == "0"


def test_what_is_not_decided_is_a_failure_of_its_own_type(good_check):
    gate = parse_gate("[tasks]\nloss_max = 1\nnon_inferior = true")
    root = read_junit(to_junit(good_check, judge(good_check, gate)))
    (failure,) = root.iter("failure")
    assert failure.get("type") == "undecided"
    assert failure.get("message").startswith("tasks.loss_max: undecided, got ")


def test_without_a_gate_there_is_no_test(good_check):
    assert read_junit(to_junit(good_check)).get("tests") == "0"


def test_a_long_list_of_guilty_layers_is_cut():
    layers = tuple(LayerFinding(f"visual.blocks.{i}.a", "int8", "x", 1.0, 1.0) for i in range(30))
    result = CheckResult("a", "b", "c", "d", 1, {}, settings=SAME, layers=layers)
    verdict = judge(result, parse_gate("[layers]\nown_sqnr_db_min = 5"))
    text = next(read_junit(to_junit(result, verdict)).iter("failure")).text
    assert text.count("guilty: visual") == 10
    assert "guilty: 20 more layers" in text


@given(st.text(st.characters(), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_names_of_any_characters_leave_the_file_well_formed(name):
    tasks = (TaskFinding(name, "anls", 1, 90, 10, -90, -70, 0.8, 0, 0.64),)
    result = CheckResult(name, name, name, "d", 1, {}, settings=SAME, tasks=tasks)
    gate = parse_gate("[tasks]\nworst_loss_max = 1")
    root = read_junit(to_junit(result, judge(result, gate)))
    message = next(root.iter("failure")).get("message")
    assert message.startswith("tasks.worst_loss_max: got 80 points")


@pytest.mark.parametrize("name", ["a & b", "<task>", 'say "x"', "]]>", "Ärger 数 🙂"])
def test_names_are_read_back_as_they_are(name):
    tasks = (TaskFinding(name, "anls", 1, 90, 10, -90, -70, 0.8, 0, 0.64),)
    result = CheckResult(name, "b", "c", "d", 1, {}, settings=SAME, tasks=tasks)
    gate = dataclasses.replace(parse_gate("[tasks]\nworst_loss_max = 1"))
    root = read_junit(to_junit(result, judge(result, gate)))
    assert f"({name}, of this 1 example" in next(root.iter("failure")).get("message")
    assert next(root.iter("property")).get("value") == name
