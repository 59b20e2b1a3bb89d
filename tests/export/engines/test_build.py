"""A bundle becomes a set of engines that the runtime accepts, or stays as it was."""

import hashlib
import os
import shlex
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vlmedge.export.engines import build as build_module
from vlmedge.export.engines.build import build_engines, format_command
from vlmedge.export.engines.profiles import derive_profiles
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.runtime.backends.trt import cuda_driver
from vlmedge.runtime.backends.trt.choose import choose_set
from vlmedge.runtime.backends.trt.engine_set import Gpu, read_engine_set, record_weights
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BackendError, BundleError

ORIN = Gpu("Orin", "8.7")
SMALL = {"max_pixels": 16 * 784, "prefill_tokens": 16}


@pytest.fixture
def on_orin(monkeypatch):
    """A GPU that is not there."""
    monkeypatch.setattr(cuda_driver, "CudaDriver", lambda: type("Driver", (), {"gpu": ORIN}))


@pytest.fixture
def bundle(lower, tmp_path):
    """A copy to build in."""
    return Path(shutil.copytree(lower("jetpack-6.2"), tmp_path / "bundle"))


def list_all(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_the_set_is_what_the_runtime_would_choose(install_fake, on_orin, bundle):
    install_fake("10.3.0")
    made = build_engines(bundle, BuildSettings(**SMALL))
    assert made.folder == bundle / "engines" / "sm87-tensorrt10.3.0-bfloat16"
    manifest = read_manifest(bundle)
    chosen = choose_set(bundle, manifest, ORIN, {"tensorrt": "10.3.0"})
    assert chosen.folder == made.folder
    assert chosen.engine_set == made.engine_set == read_engine_set(made.folder)
    assert chosen.notices == ()


def test_the_record_says_what_was_built_and_how(install_fake, on_orin, bundle):
    module = install_fake("10.3.0")
    settings = BuildSettings(**SMALL, video=True)
    record = build_engines(bundle, settings).engine_set
    manifest = read_manifest(bundle)
    assert (record.builder, record.version, record.gpu) == ("tensorrt", "10.3.0", ORIN)
    assert record.dtype == "bfloat16"
    assert record.settings == {"max_pixels": "12544", "prefill_tokens": "16", "video": "True"}
    assert list(record.chains) == ["vision", "vision_video", "decoder"]
    assert record.weights_sha256 == record_weights(manifest)
    for graph, chain in record.chains.items():
        (engine,) = chain
        spec = manifest.graphs[graph]
        data = (bundle / spec.file).read_bytes()
        assert record.graph_sha256[graph] == hashlib.sha256(data).hexdigest()
        assert (engine.inputs, engine.outputs) == (spec.inputs, spec.outputs)
        assert engine.profiles == derive_profiles(manifest, settings)[graph]
        assert engine.sha256 == hashlib.sha256(module.plan).hexdigest()


def test_the_command_builds_the_same_again(install_fake, on_orin, bundle, capsys):
    from vlmedge.runtime.cli.main import main

    install_fake("10.3.0")
    settings = BuildSettings(**SMALL, split=2, separate_lm_head=True, optimization_level=1)
    first = build_engines(bundle, settings).engine_set
    program, *argv = shlex.split(first.command)
    assert program == "vlmedge"
    assert main(argv) == 0
    assert "decoder.1.engine" in capsys.readouterr().out
    assert read_engine_set(bundle / "engines/sm87-tensorrt10.3.0-bfloat16") == first


def test_a_folder_with_a_space_is_quoted_in_the_command():
    command = format_command("my bundle", BuildSettings(video=True), "tensorrt_rtx")
    assert command == "vlmedge build 'my bundle' --builder tensorrt_rtx --video"


def test_a_split_decoder_is_a_chain_and_leaves_no_parts_behind(install_fake, on_orin, bundle):
    module = install_fake("10.3.0")
    made = build_engines(bundle, BuildSettings(**SMALL, split=2, separate_lm_head=True))
    names = [engine.name for engine in made.engine_set.chains["decoder"]]
    assert names == ["decoder.0", "decoder.1", "lm_head"]
    assert list_all(made.folder) == [
        "decoder.0.engine",
        "decoder.1.engine",
        "engines.json",
        "lm_head.engine",
        "vision.engine",
    ]
    assert list(made.seconds) == list(made.peak_bytes) == ["vision", *names]
    batches = [shapes for name, shapes in module.calls if name == "profile"][-1]
    assert list(batches.values()) == [((1, 64), (1, 64), (1, 64))]  # of the head: [batch, hidden]


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="no kernel that forgets a peak"
)
def test_an_engines_peak_memory_is_its_own(install_fake, on_orin, bundle, monkeypatch):
    """The first takes 200 MiB more than the second, as it would say for both otherwise."""
    module = install_fake("10.3.0")
    build = module.Builder.build_serialized_network
    sizes = [200 << 20, 0]

    def hungry(self, network, config):
        np.ones(sizes.pop(0), np.uint8)
        return build(self, network, config)

    monkeypatch.setattr(module.Builder, "build_serialized_network", hungry)
    peaks = build_engines(bundle, BuildSettings(**SMALL)).peak_bytes
    assert peaks["vision"] - peaks["decoder"] > 150 << 20


def test_what_one_build_measured_the_next_gets(install_fake, on_orin, bundle):
    module = install_fake("10.3.0")
    build_engines(bundle, BuildSettings(**SMALL))
    caches = [value for name, value in module.calls if name == "cache"]
    assert caches == [b"", b"+measured"]
    build_engines(bundle, BuildSettings(**SMALL))
    assert [value for name, value in module.calls if name == "cache"][2] == b"+measured" * 2


def test_a_file_that_is_no_timing_cache_of_this_gpu_is_refused_and_not_written_over(
    install_fake, on_orin, bundle, tmp_path
):
    module = install_fake("10.3.0")
    file = tmp_path / "named"
    file.write_bytes(b"other GPU")
    with pytest.raises(BackendError, match=r"named is of another GPU .*: it is left alone"):
        build_engines(bundle, BuildSettings(**SMALL, timing_cache=file))
    assert file.read_bytes() == b"other GPU"
    assert not (bundle / "engines").exists()
    assert not any(name == "build" for name, _ in module.calls)
    (tmp_path / "folder").mkdir()
    for odd in (tmp_path / "folder", Path("/dev/null")):
        with pytest.raises(ValueError, match="is no file: name another one"):
            build_engines(bundle, BuildSettings(**SMALL, timing_cache=odd))
    file.unlink()
    build_engines(bundle, BuildSettings(**SMALL, timing_cache=file))
    assert file.read_bytes().endswith(b"+measured")


def test_a_bundle_that_changes_while_engines_are_built_leaves_the_old_set(
    install_fake, on_orin, bundle
):
    install_fake("10.3.0")
    before = build_engines(bundle, BuildSettings(**SMALL))
    path = bundle / "decoder.onnx.data"

    def change(done, total, share, text):
        if done == total - 1:
            path.with_name("new").write_bytes(path.read_bytes())
            path.with_name("new").replace(path)

    with pytest.raises(ValueError, match=r"decoder\.onnx\.data changed while it was read"):
        build_engines(bundle, BuildSettings(**SMALL, video=True), progress=change)
    assert read_engine_set(before.folder) == before.engine_set
    assert not list((bundle / "engines").glob(".*"))


def test_the_second_build_of_a_set_is_told(install_fake, on_orin, bundle):
    install_fake("10.3.0")
    errors = []

    def build_another():
        with pytest.raises(ValueError, match="wait for it, or name another target") as error:
            build_engines(bundle, BuildSettings(**SMALL))
        errors.append(str(error.value))

    def progress(*_):
        if not errors:
            thread = threading.Thread(target=build_another)
            thread.start()
            thread.join()

    build_engines(bundle, BuildSettings(**SMALL), progress=progress)
    assert "engines/sm87-tensorrt10.3.0-bfloat16" in errors[0]


def test_a_refused_graph_leaves_the_old_set_and_no_half_of_a_new_one(install_fake, on_orin, bundle):
    module = install_fake("10.3.0")
    old = build_engines(bundle, BuildSettings(**SMALL))
    before = list_all(bundle)
    module.fails = [("/n", "Swish", "unknown")]
    with pytest.raises(BackendError, match=r"can't read vision\.onnx: /n"):
        build_engines(bundle, BuildSettings(**SMALL))
    assert list_all(bundle) == before
    assert read_engine_set(old.folder) == old.engine_set


def test_progress_counts_engines(install_fake, on_orin, bundle):
    install_fake("10.3.0")
    told = []
    build_engines(bundle, BuildSettings(**SMALL), progress=lambda *report: told.append(report))
    assert {total for _, total, _, _ in told} == {2}
    places = [done + share for done, _, share, _ in told]
    assert places == sorted(places)
    texts = [text for *_, text in told if not text.startswith("comparing hashes, ")]
    assert 0 < len(texts) < len(told)
    assert (texts[0], texts[-1]) == ("vision: Building", "decoder: Building")


def test_a_graph_that_was_changed_is_not_built(install_fake, on_orin, bundle):
    install_fake("10.3.0")
    path = bundle / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.onnx is not what the manifest says"):
        build_engines(bundle, BuildSettings(**SMALL))
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("name", ["decoder.onnx.data", "vision.onnx.data", "tokenizer.json"])
def test_engines_do_not_vouch_for_damaged_files(install_fake, on_orin, bundle, name):
    install_fake("10.3.0")
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 3] ^= 4
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not what the manifest says"):
        build_engines(bundle, BuildSettings(**SMALL))
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb"])
def test_a_name_that_no_record_may_hold_is_told_before_anything_is_built(
    install_fake, on_orin, bundle, name
):
    install_fake("10.3.0")
    bundle = bundle.rename(bundle.with_name(name))
    with pytest.raises(ValueError, match="can't be recorded"):
        build_engines(bundle, BuildSettings(**SMALL))
    assert not (bundle / "engines").exists()


def test_a_bundle_for_onnxruntime_is_told_before_tensorrt_is_looked_for(make_bundle, monkeypatch):
    monkeypatch.setattr(build_module, "open_tensorrt", lambda _: pytest.fail("looked for"))
    with pytest.raises(ValueError, match="export it with --target first"):
        build_engines(make_bundle("tiny").bundle)


def test_graphs_newer_than_tensorrt_are_not_even_parsed(install_fake, on_orin, lower):
    module = install_fake("10.3.0")
    with pytest.raises(BackendError, match=r"for jetpack-7\.2 .*--target jetpack-6\.2"):
        build_engines(lower("jetpack-7.2"))
    assert module.calls == []


def test_without_a_gpu_tensorrt_says_so_and_rtx_says_how_to_build_anyway(
    install_fake, bundle, monkeypatch
):
    def refuse():
        raise BackendError("no GPU can be used")

    monkeypatch.setattr(cuda_driver, "CudaDriver", refuse)
    install_fake("10.3.0")
    with pytest.raises(BackendError, match=r"^no GPU can be used$"):
        build_engines(bundle)
    install_fake("1.7.1", rtx=True)
    with pytest.raises(BackendError, match=r"no GPU can be used; .*--compute-capability 8\.6"):
        build_engines(bundle)
    made = build_engines(bundle, BuildSettings(**SMALL, compute_capability="8.6"))
    assert made.engine_set.gpu == Gpu("", "8.6")


def test_rtx_on_a_gpu_it_does_not_know_is_refused(install_fake, on_orin, bundle):
    install_fake("1.7.1", rtx=True)
    with pytest.raises(BackendError, match=r"not for 8\.7: Jetsons"):
        build_engines(bundle)


def test_tensorrt_builds_for_no_other_gpu(install_fake, on_orin, bundle):
    install_fake("10.3.0")
    with pytest.raises(ValueError, match="leave out --compute-capability"):
        build_engines(bundle, BuildSettings(compute_capability="8.7"))


def test_a_board_without_onnx_builds_whole_and_is_told_what_a_split_needs(
    install_fake, on_orin, bundle, monkeypatch
):
    install_fake("10.3.0")
    for name in ("split", "split_plan"):
        monkeypatch.delitem(sys.modules, f"vlmedge.export.engines.{name}", raising=False)
    real = sys.modules["onnx"]
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match="splitting the decoder needs onnx: pip install onnx"):
        build_engines(bundle, BuildSettings(**SMALL, split=2))
    monkeypatch.setitem(sys.modules, "onnx", real)  # for the fake


def test_a_disk_without_hard_links_is_told(install_fake, on_orin, bundle, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    install_fake("10.3.0")
    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(BackendError, match=r"need hard links to decoder\.onnx\.data"):
        build_engines(bundle, BuildSettings(**SMALL, split=2))


def test_a_truncated_weights_file_is_found_first(install_fake, on_orin, bundle):
    install_fake("10.3.0")
    with (bundle / "decoder.onnx.data").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data has 100 bytes"):
        build_engines(bundle)
