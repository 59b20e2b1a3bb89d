import copy
import json
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from fingerprint import main, parse_args
from fingerprints.file import (
    Fingerprint,
    FingerprintError,
    compare,
    read_fingerprint,
    write_fingerprint,
)
from fingerprints.record import Command, list_facts, record
from fingerprints.runs import PARTS, Words

# Completes options, and writes a bundle or JSON for each command; times and memory differ by run
PROGRAM = """#!{python}
import json, os, sys, time
from pathlib import Path

words = {words}
if typed := os.environ.get("COMP_WORDS"):
    print("\\n".join(words[typed.split()[-1]]))
    sys.exit()
name, *args = sys.argv[1:]
if name == "--version":
    print("vlmedge 1")
elif name in ("export", "quantize"):
    if args[0] == "recipe-r" and "--target" in args:
        sys.exit("vlmedge export: refused")
    bundle = Path(args[1])
    bundle.mkdir()
    (bundle / "graph.onnx").write_bytes(Path(args[0]).name.encode() + b"{weights}")
    (bundle / "manifest.json").write_text(json.dumps({{"of": args[0]}}))
    measured = {{"peak_bytes": os.getpid()}} if name == "quantize" else {{}}
    print(json.dumps({{"seconds": time.time(), "bytes": 1}} | measured))
elif name == "check":
    speed = [{{"what": "vision", "reference_runs": [time.time()], "got_runs": [time.time()]}}]
    print(json.dumps({{"result": {{"speed": speed, "threads": os.environ["OMP_NUM_THREADS"]}}}}))
    sys.exit(1)
else:
    print(json.dumps({{"seconds": 0.25, "device": args[args.index("--device") + 1]}}))
"""
WORDS = {
    "--weights": ["fp32"],
    "--recipe": ["r"],
    "--target": ["t"],
    "--dtype": ["fp32", "fp16"],
    "--device": ["d", "this"],
}


@pytest.fixture
def make_program(tmp_path):
    """make_program(weights, words): a command that answers as vlmedge does, but at once."""

    def make(weights="1", words=WORDS):
        path = tmp_path / "vlmedge"
        text = PROGRAM.format(python=sys.executable, words=words, weights=weights)
        path.write_text(text, "utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


@pytest.fixture
def fingerprint() -> Fingerprint:
    facts = {"exit code": 0, "graph.onnx": "12", "stdout: fits": True, "stdout: bytes": 1}
    return Fingerprint("vlmedge 1", {"reader/config.json": "34"}, {"plan": {"plan a": facts}})


def change(fingerprint, **facts):
    """The same with other facts of its only run."""
    changed = copy.deepcopy(fingerprint)
    changed.parts["plan"]["plan a"] |= facts
    return changed


def test_equal_fingerprints_have_no_differences(fingerprint):
    assert list(compare(fingerprint, copy.deepcopy(fingerprint))) == []


def test_a_changed_fact_is_named_with_both_values(fingerprint):
    changed = change(fingerprint, **{"graph.onnx": "56"})
    assert list(compare(fingerprint, changed)) == ['plan a: graph.onnx: "12" -> "56"']


@pytest.mark.parametrize("value", [1, 1.0, "true", None])
def test_a_value_of_another_type_is_a_difference(fingerprint, value):
    changed = change(fingerprint, **{"stdout: fits": value})
    (line,) = compare(fingerprint, changed)
    assert line == f"plan a: stdout: fits: true -> {json.dumps(value)}"


def test_facts_and_commands_that_only_one_has_are_named(fingerprint):
    changed = copy.deepcopy(fingerprint)
    changed.parts["plan"]["plan b"] = {"exit code": 0}
    del changed.parts["plan"]["plan a"]["graph.onnx"]
    changed.parts["plan"]["plan a"]["other.onnx"] = "78"
    assert list(compare(fingerprint, changed)) == [
        'plan a: missing: graph.onnx = "12"',
        'plan a: added: other.onnx = "78"',
        "added: plan b",
    ]
    assert list(compare(changed, fingerprint))[-1] == "missing: plan b"


def test_keys_in_another_order_are_a_difference(fingerprint):
    changed = copy.deepcopy(fingerprint)
    facts = changed.parts["plan"]["plan a"]
    changed.parts["plan"]["plan a"] = dict(reversed(facts.items()))
    (line,) = compare(fingerprint, changed)
    assert "order" in line
    assert "exit code" in line


def test_not_a_number_is_equal_to_itself(fingerprint):
    nan = change(fingerprint, **{"stdout: fits": float("nan")})
    assert list(compare(nan, copy.deepcopy(nan))) == []


def test_only_parts_that_both_hold_are_compared(fingerprint):
    more = replace(fingerprint, parts=fingerprint.parts | {"check": {"check a": {}}})
    assert list(compare(more, fingerprint)) == list(compare(fingerprint, more)) == []
    with pytest.raises(FingerprintError, match="the same parts"):
        list(compare(fingerprint, replace(more, parts={"check": {}})))


def test_other_samples_and_other_versions_are_refused(fingerprint):
    with pytest.raises(FingerprintError, match=r"different samples \(reader/config\.json\)"):
        list(compare(fingerprint, replace(fingerprint, inputs={"reader/config.json": "35"})))
    with pytest.raises(FingerprintError, match=r"vlmedge 1 and vlmedge 2: .*pyproject"):
        list(compare(fingerprint, replace(fingerprint, vlmedge="vlmedge 2")))


def test_a_file_is_read_as_it_was_written(fingerprint, tmp_path):
    write_fingerprint(tmp_path / "a.json", fingerprint)
    assert read_fingerprint(tmp_path / "a.json") == fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema_version": 0}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "vlmedge": "1", "inputs": {}, "parts": []}',
        '{"schema_version": 1, "vlmedge": "1", "inputs": {}, "parts": {"plan": [1]}}',
        '{"schema_version": 1, "vlmedge": "1", "inputs": {}, "parts": {"plan": {"a": 1}}}',
        '{"schema_version": 1, "vlmedge": "1", "inputs": {}, "parts": {}, "more": 1}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_damaged_file_is_refused_in_one_line(fingerprint, tmp_path, text, capsys):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_fingerprint(good, fingerprint)
    bad.write_bytes(text.encode("utf-8", "surrogateescape"))
    for pair in ([good, bad], [bad, good]):
        assert main(["compare", *map(str, pair)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "bad.json" in err


def test_a_missing_file_is_refused_in_one_line(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "a.json can't be read: No such file" in capsys.readouterr().err


def test_the_exit_code_says_whether_there_are_differences(fingerprint, tmp_path, capsys):
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    write_fingerprint(tmp_path / "a.json", fingerprint)
    write_fingerprint(tmp_path / "b.json", change(fingerprint, **{"graph.onnx": "56"}))
    assert main(["compare", a, a]) == 0
    assert capsys.readouterr() == ("", "plan: commands compared: 1, differences: 0\n")
    assert main(["compare", a, b]) == 1
    assert capsys.readouterr().out == 'plan a: graph.onnx: "12" -> "56"\n'


def test_only_the_named_values_are_dropped():
    document = {"a": [{"time": 1, "b": 2}, {"time": 3}], "time": 4, "none": [], "empty": {}}
    assert list_facts("x", document, {"a[].time": "a time"}) == {
        "x: a[0].b": 2,
        "x: time": 4,
        "x: none": "[]",
        "x: empty": "{}",
    }


def test_the_installed_command_completes_everything_that_the_code_knows(tmp_path):
    from vlmedge.export.graphs.weight_format import WeightFormat
    from vlmedge.export.lowering.options import DtypeOption
    from vlmedge.export.lowering.targets import TARGETS
    from vlmedge.export.planning.devices import DEVICES
    from vlmedge.quant.recipe.preset_names import list_presets

    assert Command(Path(sys.executable).parent / "vlmedge", tmp_path).list_words() == Words(
        weights=list(get_args(WeightFormat)),
        recipes=list(list_presets()),
        targets=list(TARGETS),
        dtypes=list(get_args(DtypeOption)),
        devices=list(DEVICES),
    )


def test_two_records_of_one_command_are_equal(make_program):
    program = make_program()
    first, second = record(program, PARTS, 2), record(program, PARTS, 1)
    assert list(compare(first, second)) == []
    assert list(first.parts) == list(PARTS)


def test_every_completed_word_is_recorded_and_a_refusal_by_its_exit_code(make_program):
    parts = record(make_program(), PARTS, 2).parts
    bundles = {run.split()[2]: facts for run, facts in parts["bundles"].items()}
    assert bundles.keys() == {"recipe-r", "weights-fp32", "target-t", "t-fp16", "t-linked", "t-r"}
    assert bundles["t-r"] == {"exit code": 1}
    assert bundles["t-fp16"].keys() == {
        "exit code",
        "stdout: lines",
        "stdout: bytes",
        "graph.onnx",
        "manifest.json",
        "manifest.json: of",
    }
    assert {run.split()[1] for run in parts["check"]} == {"recipe-r", "target-t"}
    assert all(facts["stdout: device"] == "d" for facts in parts["plan"].values())
    assert all(facts["stdout: seconds"] == 0.25 for facts in parts["plan"].values())  # an estimate
    assert all(facts["stdout: result.threads"] == "1" for facts in parts["check"].values())


def test_other_weights_are_found(make_program):
    old = record(make_program("1"), ["bundles"], 2)
    lines = list(compare(old, record(make_program("2"), ["bundles"], 2)))
    assert len(lines) == 5  # every bundle that is written
    assert all("graph.onnx" in line for line in lines)


def test_a_command_that_has_to_succeed_ends_the_record(make_program, tmp_path, capsys):
    program = make_program(words=WORDS | {"--weights": []})
    assert main(["record", str(tmp_path / "a.json"), "--vlmedge", str(program)]) == 2
    assert "completes vlmedge export --weights with nothing" in capsys.readouterr().err
    program = make_program()
    program.write_text(program.read_text("utf-8").replace('"recipe-r"', '"reader"'), "utf-8")
    assert main(["record", str(tmp_path / "a.json"), "--vlmedge", str(program)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("failed: vlmedge export: refused")
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["record", "a.json", "--vlmedge", "nowhere/vlmedge"], "--vlmedge nowhere/vlmedge"),
        (["record", "nowhere/a.json", "--vlmedge", sys.executable], "nowhere is not a folder"),
        (["record", "a.json", "--jobs", "0"], "--jobs is 0"),
        (["record", "a.json", "--only", "nothing"], "--only"),
        (["compare", "a.json"], "B.json"),
    ],
)
def test_wrong_options_exit_with_2(argv, named, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(argv)
    assert error.value.code == 2
    assert named in capsys.readouterr().err


def test_a_program_that_cannot_be_run_is_refused_in_one_line(make_program, tmp_path, capsys):
    program = shutil.copyfile(make_program(), tmp_path / "not-executable")
    assert main(["record", str(tmp_path / "a.json"), "--vlmedge", str(program)]) == 2
    assert "Permission denied" in capsys.readouterr().err
