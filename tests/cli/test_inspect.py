"""`vlmedge inspect` and the checks behind it."""

import json

import pytest

from vlmedge.runtime import cli
from vlmedge.runtime.inspection import check_file, count_precisions, list_unlisted
from vlmedge.runtime.manifest import read_manifest, to_json


def test_a_fresh_bundle_is_ok_as_json(tiny_bundle, capsys):
    assert cli.main(["inspect", str(tiny_bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["manifest"] == json.loads((tiny_bundle / "manifest.json").read_text())
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
