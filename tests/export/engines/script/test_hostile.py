"""Strings of a manifest that try to run commands where an emitted script runs."""

import dataclasses
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from vlmedge.export.engines.script.options import make_options
from vlmedge.export.engines.script.parts import make_parts
from vlmedge.export.engines.script.write import make_script, write_script
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.runtime.backends.trt.engine_set import Profile, ShapeRange, read_engine_set
from vlmedge.runtime.bundle.manifest_file import parse_manifest, read_manifest, to_json
from vlmedge.runtime.errors import BundleError

SETTINGS = BuildSettings(context=64, prefill_tokens=16)

# Says what trtexec says, and writes an engine.
TRTEXEC = """#!/usr/bin/env bash
printf '&&&& RUNNING TensorRT.trtexec [TensorRT v100300]\\n'
printf '[I] Selected Device: Orin\\n[I] Compute Capability: 8.7\\n'
for argument in "$@"; do
  case $argument in
    --timingCacheFile=*) printf 'timings' >"${argument#*=}" ;;
    --saveEngine=*) printf 'engine' >"${argument#*=}" ;;
  esac
done
"""


@pytest.fixture(scope="module")
def original(lower):
    """A bundle whose every free text is still ours."""
    return lower("jetpack-6.2", "fp16")


@pytest.fixture
def run_script(tmp_path):
    """run_script(archive, script): unpack and run it as on a board; every path that was there."""
    home = tmp_path / "device"
    tools = tmp_path / "tools"
    home.mkdir()
    tools.mkdir()
    trtexec = tools / "trtexec"
    trtexec.write_text(TRTEXEC, encoding="utf-8")
    trtexec.chmod(trtexec.stat().st_mode | stat.S_IXUSR)

    def run(archive: Path, script: str) -> list[str]:
        subprocess.run(["tar", "-xf", archive], cwd=home, check=True)
        checked = subprocess.run(
            ["bash", "-n", script], cwd=home, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")
        done = subprocess.run(
            ["bash", script],
            cwd=home,
            env={"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]

    return run


def set_free_texts(manifest, text):
    """The manifest with `text` in every field that takes any text."""
    return dataclasses.replace(
        manifest,
        created_by=text,
        source=dataclasses.replace(manifest.source, name=text, sha256={text: "0" * 64}),
        precision=dict.fromkeys(manifest.precision, text) | {text: text},
        coverage=tuple(
            dataclasses.replace(entry, name=f"{text}{i}", precision=text, reason=text)
            for i, entry in enumerate(manifest.coverage)
        ),
    )


def test_texts_that_a_manifest_may_hold_run_nothing(original, hostile, run_script, tmp_path):
    bundle = shutil.copytree(original, tmp_path / "host" / "bundle")
    manifest = set_free_texts(read_manifest(original), hostile)
    try:
        manifest = parse_manifest(to_json(manifest))
    except (BundleError, UnicodeEncodeError):
        pass  # refused where it is read; the script must hold even so
    else:
        (bundle / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    written = write_script(bundle, manifest, SETTINGS, tmp_path / "host" / "build.sh")
    left = run_script(written.archive, "build.sh")
    assert any(path.endswith("engines.json") for path in left)
    assert not [path for path in left if "owned" in path]


@pytest.mark.parametrize("field", ["name", "tensorrt"])
def test_a_target_is_refused_where_it_is_read_and_where_it_is_written(
    original, hostile, field, tmp_path
):
    manifest = read_manifest(original)
    target = dataclasses.replace(manifest.target, **{field: hostile})
    changed = dataclasses.replace(manifest, target=target)
    with pytest.raises(BundleError):
        parse_manifest(to_json(changed))
    parts = make_parts(original, manifest, SETTINGS)
    try:
        script = make_script("bundle", "build.sh", changed, target, SETTINGS, parts)
    except ValueError:
        return
    (tmp_path / "build.sh").write_text(script, encoding="utf-8")
    subprocess.run(["bash", "build.sh"], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert not (tmp_path / "owned").exists()


def test_a_version_of_numbers_of_other_scripts_is_refused(original):
    manifest = read_manifest(original)
    target = dataclasses.replace(manifest.target, tensorrt="\u0661\u0660.\u0663")
    with pytest.raises(BundleError, match=r"target\.tensorrt is"):
        parse_manifest(to_json(dataclasses.replace(manifest, target=target)))


@pytest.mark.parametrize("place", ["file", "graph", "input", "dimension"])
def test_names_that_reach_options_and_paths_are_refused(original, hostile, place):
    manifest = read_manifest(original)
    decoder, files = manifest.graphs["decoder"], dict(manifest.files)
    graphs = dict(manifest.graphs)
    if place == "file":
        files[hostile] = files[decoder.file]
        graphs["decoder"] = dataclasses.replace(decoder, file=hostile)
    elif place == "graph":
        graphs[hostile] = decoder
    else:
        first = decoder.inputs[0]
        first = (
            dataclasses.replace(first, name=hostile)
            if place == "input"
            else dataclasses.replace(first, shape=(hostile, *first.shape[1:]))
        )
        graphs["decoder"] = dataclasses.replace(decoder, inputs=(first, *decoder.inputs[1:]))
    with pytest.raises(BundleError):
        parse_manifest(to_json(dataclasses.replace(manifest, graphs=graphs, files=files)))


@pytest.mark.parametrize("name", ["-x", "a/-x", ".x", "a/.x", "a//b", "a/", "x y", "manifest.json"])
def test_a_file_name_that_a_program_may_misread_is_refused(original, name):
    manifest = read_manifest(original)
    files = manifest.files | {name: manifest.files[manifest.tokenizer_file]}
    with pytest.raises(BundleError, match="file name"):
        parse_manifest(to_json(dataclasses.replace(manifest, files=files)))


def test_an_input_can_not_add_shapes_or_options(hostile):
    profile = Profile("decode", {hostile: ShapeRange((1,), (1,), (1,))})
    if hostile.isalnum() and len(hostile) < 200:
        pytest.skip("a name like any other")
    with pytest.raises(ValueError, match="trtexec reads as its own"):
        make_options([profile], SETTINGS, "10.3")


@pytest.mark.parametrize("name", ["a:1x1,b", "a,b", "a'b", 'a"b', "a*", "a b", "a[0]", "a?"])
def test_characters_of_trtexecs_own_are_refused(name):
    profile = Profile("decode", {name: ShapeRange((1,), (1,), (1,))})
    with pytest.raises(ValueError, match="trtexec reads as its own"):
        make_options([profile], SETTINGS, "10.3")


NAMES = [
    "$(touch owned)",
    "`touch owned`",
    "'; touch owned; '",
    '"; touch owned; "',
    "x & y",
    "a b",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_users_own_names_are_quoted(original, name, run_script, tmp_path):
    """Folder, script and timing cache are called as their owner likes."""
    bundle = shutil.copytree(original, tmp_path / "host" / name)
    script = tmp_path / "host" / f"{name}.sh"
    cache = tmp_path / f"{name}.timing"
    settings = dataclasses.replace(SETTINGS, timing_cache=cache)
    written = write_script(bundle, read_manifest(bundle), settings, script)
    left = run_script(written.archive, script.name)
    assert cache.read_text(encoding="utf-8") == "timings"
    assert not [path for path in left if Path(path).name == "owned"]
    (record,) = (tmp_path / "device").glob("*/engines/*/engines.json")
    assert read_engine_set(record.parent).settings["timing_cache"] == str(cache)


@pytest.mark.parametrize("name", ["x\ny", "-x", "x\u202ey"])
def test_names_that_can_not_be_carried_are_refused(original, name, tmp_path):
    manifest = read_manifest(original)
    with pytest.raises(ValueError, match="carried to a device"):
        write_script(original, manifest, SETTINGS, tmp_path / f"{name}.sh")
    bundle = shutil.copytree(original, tmp_path / name)
    with pytest.raises(ValueError, match="carried to a device"):
        write_script(bundle, manifest, SETTINGS, tmp_path / "build.sh")


def test_a_graph_that_wants_a_file_of_no_record_is_refused(original, tmp_path):
    manifest = read_manifest(original)
    data = manifest.graphs["decoder"].file + ".data"
    files = {name: record for name, record in manifest.files.items() if name != data}
    with pytest.raises(BundleError, match="no record"):
        make_parts(original, dataclasses.replace(manifest, files=files), SETTINGS)


@pytest.mark.parametrize("name", ["decoder.onnx", "vision.onnx.data", "chat_template.jinja"])
def test_no_script_is_written_of_a_damaged_bundle(original, name, tmp_path):
    bundle = shutil.copytree(original, tmp_path / "bundle")
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match="is not what the manifest says"):
        write_script(bundle, read_manifest(bundle), SETTINGS, tmp_path / "build.sh")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("field", ["name", "file", "command", "created_by", "input"])
def test_an_engine_set_with_controls_is_refused(
    hostile_control, field, run_script, original, tmp_path
):
    from vlmedge.runtime.backends.trt import engine_set as engine_sets

    script = tmp_path / "build.sh"
    written = write_script(original, read_manifest(original), SETTINGS, script)
    run_script(written.archive, "build.sh")
    (record,) = (tmp_path / "device").glob("*/engines/*/engines.json")
    made = read_engine_set(record.parent)
    if field in ("command", "created_by"):
        made = dataclasses.replace(made, **{field: hostile_control})
    else:
        (engine,) = made.chains["vision"]
        if field == "input":
            first = dataclasses.replace(engine.inputs[0], name=hostile_control)
            engine = dataclasses.replace(engine, inputs=(first, *engine.inputs[1:]))
        else:
            engine = dataclasses.replace(engine, **{field: hostile_control})
        made = dataclasses.replace(made, chains=made.chains | {"vision": (engine,)})
    with pytest.raises(BundleError):
        engine_sets.parse_engine_set(engine_sets.to_json(made))
