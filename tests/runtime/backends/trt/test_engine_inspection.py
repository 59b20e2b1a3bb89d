"""What `vlmedge inspect` says of a bundle's engine sets."""

import dataclasses
import hashlib
import json

import pytest

from vlmedge.runtime.backends.trt.engine_inspection import check_engine_sets
from vlmedge.runtime.backends.trt.engine_set import (
    SCHEMA_VERSION,
    EngineRecord,
    EngineSet,
    Gpu,
    Profile,
    ShapeRange,
    record_weights,
    to_json,
)
from vlmedge.runtime.bundle.manifest import TensorSpec
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli import main as cli

CONTENT = b"an engine, as far as anybody looks"


@pytest.fixture
def bundle(make_bundle, tmp_path):
    """A bundle with one set of one engine."""
    import shutil

    folder = tmp_path / "bundle"
    shutil.copytree(make_bundle("tiny").bundle, folder)
    write_set(folder, make_set(folder))
    return folder


def make_set(bundle):
    manifest = read_manifest(bundle)
    shapes = {"pixel_values": ShapeRange((1, 4, 588), (1, 16, 588), (1, 64, 588))}
    engine = EngineRecord(
        "vision",
        "vision.engine",
        len(CONTENT),
        hashlib.sha256(CONTENT).hexdigest(),
        (TensorSpec("pixel_values", "uint8", ("num_images", "num_patches", 588)),),
        (TensorSpec("image_embeds", "float32", ("num_images", "num_tokens", 64)),),
        (Profile("vision", shapes),),
    )
    return EngineSet(
        SCHEMA_VERSION,
        "vlmedge 0.1.0",
        "tensorrt",
        "10.3.0.30",
        Gpu("Orin", "8.7"),
        "bfloat16",
        "vlmedge build bundle",
        {},
        {"vision": manifest.files["vision.onnx"].sha256},
        {"vision": (engine,)},
        record_weights(manifest),
    )


def write_set(bundle, engine_set, content=CONTENT):
    folder = bundle / "engines" / "sm87-tensorrt10.3.0-bfloat16"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engines.json").write_text(to_json(engine_set))
    (folder / "vision.engine").write_bytes(content)


def inspect(bundle, capsys, *options):
    code = cli.main(["inspect", str(bundle), "--json", *options])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_a_set_that_was_built_of_the_bundle_is_ok(bundle, capsys):
    code, report, _ = inspect(bundle, capsys)
    assert code == 0
    assert report["unlisted_files"] == []
    (found,) = report["engine_sets"]
    assert found["key"] == "sm87-tensorrt10.3.0-bfloat16"
    assert found["command"] == "vlmedge build bundle"
    assert found["file_states"] == {"vision.engine": "ok"}
    assert cli.main(["inspect", str(bundle)]) == 0
    assert "tensorrt 10.3.0.30, compute capability 8.7" in capsys.readouterr().out


def test_an_engine_with_another_byte_is_named_and_exits_1(bundle, capsys):
    write_set(bundle, make_set(bundle), b"X" + CONTENT[1:])
    code, report, err = inspect(bundle, capsys)
    assert code == 1
    assert report["ok"] is False
    assert report["engine_sets"][0]["file_states"] == {"vision.engine": "wrong hash"}
    assert "sm87-tensorrt10.3.0-bfloat16" in err
    assert err.count("\n") == 1
    assert inspect(bundle, capsys, "--no-hash")[0] == 0


def test_engines_of_another_graph_or_other_weights_are_told(bundle, capsys):
    made = make_set(bundle)
    for change in ({"graph_sha256": {"vision": "0" * 64}}, {"weights_sha256": {"x": "0" * 64}}):
        write_set(bundle, dataclasses.replace(made, **change))
        code, report, _ = inspect(bundle, capsys)
        assert code == 1
        assert report["engine_sets"][0]["problem"] == "built of other graphs or weights"


def test_a_damaged_record_is_a_problem_and_no_traceback(bundle, capsys):
    path = next(bundle.glob("engines/*/engines.json"))
    path.write_text("{")
    code, report, _ = inspect(bundle, capsys)
    assert code == 1
    assert "not JSON" in report["engine_sets"][0]["problem"]


def test_a_build_in_progress_is_passed_over(bundle):
    (bundle / "engines" / ".unfinished").mkdir()
    assert len(check_engine_sets(bundle, read_manifest(bundle))) == 1
