"""`vlmedge inspect` and the checks behind it."""

import dataclasses
import json
import re

import pytest

from vlmedge.runtime.bundle.inspection import check_file, count_precisions, list_unlisted
from vlmedge.runtime.bundle.manifest_file import read_manifest, to_json
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.cli import main as cli


def test_a_fresh_bundle_is_ok_as_json(tiny_bundle, capsys):
    assert cli.main(["inspect", str(tiny_bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert manifest.pop("checksum")
    assert report["manifest"] == manifest
    assert set(report["file_states"].values()) == {"ok"}
    assert report["unlisted_files"] == []


def test_the_report_for_a_person_has_every_file_and_graph_input(tiny_bundle, capsys):
    assert cli.main(["inspect", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    manifest = read_manifest(tiny_bundle)
    names = [*manifest.files, *manifest.graphs, "inputs_embeds", "past_key_values.{0..1}.key"]
    for name in names:
        assert name in out


@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_one_flipped_bit_anywhere_in_any_file_is_found_and_named(own_bundle, capsys, position):
    for name, record in read_manifest(own_bundle).files.items():
        path = own_bundle / name
        original = path.read_bytes()
        data = bytearray(original)
        data[int(position * (record.bytes - 1))] ^= 1
        path.write_bytes(data)
        assert cli.main(["inspect", str(own_bundle), "--json"]) == 1
        out, err = capsys.readouterr()
        assert json.loads(out)["ok"] is False
        assert json.loads(out)["file_states"][name] == "wrong hash"
        assert f"{name} (wrong hash)" in err
        assert err.count("\n") == 1
        path.write_bytes(original)


def test_no_hash_reads_no_file_but_still_sees_sizes(own_bundle, capsys):
    path = own_bundle / "embedding.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert cli.main(["inspect", str(own_bundle), "--no-hash", "--json"]) == 0
    states = json.loads(capsys.readouterr().out)["file_states"]
    assert set(states.values()) == {"not hashed"}
    path.write_bytes(data[:-1])
    assert cli.main(["inspect", str(own_bundle), "--no-hash"]) == 1
    assert "embedding.bin (wrong size)" in capsys.readouterr().err


def test_all_bad_files_are_named_not_only_the_first(own_bundle, capsys):
    (own_bundle / "embedding.bin").unlink()
    (own_bundle / "tokenizer.json").write_text("{}")
    assert cli.main(["inspect", str(own_bundle)]) == 1
    out, err = capsys.readouterr()
    assert "embedding.bin (missing)" in err
    assert "tokenizer.json (wrong size)" in err
    assert "missing" in out


def test_a_file_nobody_vouches_for_is_told_of(own_bundle, capsys):
    (own_bundle / "notes.txt").write_text("mine")
    assert cli.main(["inspect", str(own_bundle)]) == 0
    assert "notes.txt" in capsys.readouterr().err
    assert list_unlisted(own_bundle, read_manifest(own_bundle)) == ["notes.txt"]


def test_hash_progress_counts_every_byte_once(tiny_bundle):
    for name, record in read_manifest(tiny_bundle).files.items():
        counts: list[int] = []
        assert check_file(tiny_bundle, name, record, on_bytes=counts.append).state == "ok"
        assert sum(counts) == record.bytes


def test_every_tensor_is_counted_in_one_part(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    counts = count_precisions(manifest)
    assert sum(sum(part.values()) for part in counts.values()) == len(manifest.precision)
    assert {"vision", "decoder", "embedding"} <= set(counts)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": 99}', "\0"])
def test_a_broken_manifest_is_one_line(own_bundle, capsys, content):
    (own_bundle / "manifest.json").write_text(content)
    assert cli.main(["inspect", str(own_bundle)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["inspect", str(tmp_path / "nothing")]) == 1
    assert "no such directory" in capsys.readouterr().err


def test_the_manifest_printed_is_the_manifest_read(tiny_bundle):
    text = (tiny_bundle / "manifest.json").read_text(encoding="utf-8")
    assert to_json(read_manifest(tiny_bundle)) == text


def read_rows(out):
    """The rows of the coverage table as printed, their cells as lists."""
    lines = out.partition("\nCoverage\n")[2].splitlines()
    return [re.split(r" {2,}", line.strip()) for line in lines[3:] if line.strip()]


def expand(name):
    """model.layers.{0..2,4}.x -> the names it stands for."""
    match = re.search(r"\{(.*?)\}", name)
    if match is None:
        return [name]
    numbers = []
    for run in match[1].split(","):
        first, _, last = run.partition("..")
        numbers += range(int(first), int(last or first) + 1)
    return [name.replace(match[0], str(number)) for number in numbers]


def test_coverage_has_every_entry_of_the_manifest_and_no_other(tiny_bundle, capsys):
    assert cli.main(["inspect", str(tiny_bundle), "--coverage", "--no-hash"]) == 0
    found = {
        (name, kind, None if graph == "host" else graph, precision, reason)
        for folded, kind, graphs, precision, reason in read_rows(capsys.readouterr().out)
        for name in expand(folded)
        for graph in graphs.split(", ")
    }
    coverage = read_manifest(tiny_bundle).coverage
    assert found == {dataclasses.astuple(entry) for entry in coverage}
    assert len(coverage) == len(found) > 20


def test_a_layer_of_its_own_precision_has_a_row_of_its_own(own_bundle, capsys):
    raw = json.loads((own_bundle / "manifest.json").read_text())
    name = "model.layers.{}.mlp.down_proj"
    raw["coverage"] = [
        {
            "name": name.format(i),
            "kind": "linear",
            "graph": "decoder",
            "precision": "float32" if i == 3 else "int8 static",
            "reason": "fallback of the gate" if i == 3 else "recipe",
        }
        for i in range(6)
    ]
    (own_bundle / "manifest.json").write_text(seal_manifest(raw))
    assert cli.main(["inspect", str(own_bundle), "--coverage", "--no-hash"]) == 0
    assert read_rows(capsys.readouterr().out) == [
        [name.format("{0..2,4..5}"), "linear", "decoder", "int8 static", "recipe"],
        [name.format("3"), "linear", "decoder", "float32", "fallback of the gate"],
    ]


def test_what_a_bundle_was_quantized_by_is_told(own_bundle, capsys):
    assert cli.main(["inspect", str(own_bundle), "--no-hash"]) == 0
    assert "recipe" not in capsys.readouterr().out
    raw = json.loads((own_bundle / "manifest.json").read_text())
    record = {
        "recipe": "orin",
        "recipe_toml": "[vision]\n",
        "data": "receipts",
        "data_sha256": "ab" * 32,
        "versions": {"onnx": "1.19.0", "vlmedge": "0.1.0"},
    }
    (own_bundle / "manifest.json").write_text(seal_manifest(raw | {"quantization": record}))
    for option in ([], ["--coverage"]):
        assert cli.main(["inspect", str(own_bundle), "--no-hash", *option]) == 0
        out = capsys.readouterr().out
        assert "recipe orin, onnx 1.19.0, vlmedge 0.1.0" in out
        assert "receipts, SHA-256 abababababab" in out
    assert cli.main(["inspect", str(own_bundle), "--no-hash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["quantization"] == record
    record |= {"data": None, "data_sha256": None}
    (own_bundle / "manifest.json").write_text(seal_manifest(raw | {"quantization": record}))
    assert cli.main(["inspect", str(own_bundle), "--no-hash"]) == 0
    assert "none needed" in capsys.readouterr().out


def test_damage_is_found_with_coverage_too(own_bundle, capsys):
    (own_bundle / "embedding.bin").write_bytes(b"")
    assert cli.main(["inspect", str(own_bundle), "--coverage"]) == 1
    assert "embedding.bin (wrong size)" in capsys.readouterr().err
