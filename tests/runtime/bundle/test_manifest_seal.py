"""The checksum of manifest.json: any flipped bit is found, and an edit can be sealed."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vlmedge.runtime.bundle.manifest import MANIFEST_NAME
from vlmedge.runtime.bundle.manifest_file import (
    parse_manifest,
    read_manifest,
    reseal_manifest,
    to_json,
)
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.errors import BundleError

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def original(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture
def bundle(original, tmp_path):
    return shutil.copytree(original, tmp_path / "bundle")


def test_the_checksum_is_the_sha256_of_the_file_with_zeros_in_its_place(original):
    data = (original / MANIFEST_NAME).read_bytes()
    checksum = json.loads(data)["checksum"]
    assert data.count(checksum.encode()) == 1
    zeros = data.replace(checksum.encode(), b"0" * 64)
    assert hashlib.sha256(zeros).hexdigest() == checksum
    assert list(json.loads(data))[-1] == "checksum"


def test_the_command_in_the_docs_computes_it(original):
    (command,) = re.findall(r"^    (sed .*sha256sum)$", (DOCS / "bundle.md").read_text(), re.M)
    done = subprocess.run(
        ["bash", "-c", command], cwd=original, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == json.loads((original / MANIFEST_NAME).read_text())["checksum"]


@pytest.mark.parametrize("phase", range(7))
def test_one_flipped_bit_anywhere_is_found(original, bundle, phase):
    data = (original / MANIFEST_NAME).read_bytes()
    for place in range(phase, len(data), 7 * 11):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        (bundle / MANIFEST_NAME).write_bytes(changed)
        with pytest.raises(BundleError):
            read_manifest(bundle)


def test_an_edit_by_hand_is_told_and_what_to_do(bundle):
    text = (bundle / MANIFEST_NAME).read_text(encoding="utf-8")
    (bundle / MANIFEST_NAME).write_text(text.replace('"top_k": ', '"top_k": 1'), encoding="utf-8")
    with pytest.raises(BundleError, match=r"edited by hand.*vlmedge inspect BUNDLE --seal"):
        read_manifest(bundle)


@pytest.mark.parametrize("wrong", ["gone", "not last", "short", "upper", "number"])
def test_a_checksum_must_be_there_and_last(original, wrong):
    raw = json.loads((original / MANIFEST_NAME).read_text(encoding="utf-8"))
    checksum = raw.pop("checksum")
    raw = {
        "gone": raw,
        "not last": {"checksum": checksum} | raw,
        "short": raw | {"checksum": checksum[1:]},
        "upper": raw | {"checksum": "A" + checksum[1:]},
        "number": raw | {"checksum": 7},
    }[wrong]
    with pytest.raises(BundleError, match="does not end with its checksum"):
        parse_manifest(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")


def test_a_bundle_of_the_schema_before_is_read(original):
    manifest = read_manifest(original)
    raw = json.loads((original / MANIFEST_NAME).read_text(encoding="utf-8"))
    del raw["checksum"]
    older = parse_manifest(json.dumps(raw | {"schema_version": 2}))
    assert older.schema_version == 2
    assert parse_manifest(to_json(older)) == manifest  # written as of today
    with pytest.raises(BundleError, match="unknown keys: checksum"):
        parse_manifest(json.dumps(raw | {"schema_version": 2, "checksum": "0" * 64}))


def test_sealing_makes_an_edit_good_and_leaves_nothing_beside(bundle, capsys):
    before = sorted(path.name for path in bundle.iterdir())
    raw = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    raw["generation"]["top_k"] = 7
    (bundle / MANIFEST_NAME).write_text(json.dumps(raw), encoding="utf-8")
    assert cli.main(["inspect", str(bundle)]) == 1
    assert "--seal" in capsys.readouterr().err
    assert cli.main(["inspect", str(bundle), "--seal"]) == 0
    assert cli.main(["inspect", str(bundle)]) == 0
    assert read_manifest(bundle).generation.top_k == 7
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_what_is_wrong_is_not_sealed(bundle):
    raw = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    raw["decoder"]["head_dim"] = 0
    text = json.dumps(raw)
    (bundle / MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="head_dim"):
        reseal_manifest(bundle)
    assert (bundle / MANIFEST_NAME).read_text(encoding="utf-8") == text


def test_the_helper_of_the_tests_seals_what_it_changes(bundle, edit_manifest):
    edit_manifest(bundle, lambda raw: raw["generation"].update(top_k=9))
    assert read_manifest(bundle).generation.top_k == 9


def test_sealing_again_changes_nothing(original):
    text = (original / MANIFEST_NAME).read_text(encoding="utf-8")
    assert seal_manifest(json.loads(text)) == text
