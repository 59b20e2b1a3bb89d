"""A bundle for a TensorRT: its contract, its files, links to a checkpoint, and what goes wrong."""

import dataclasses
import errno
import hashlib
import os
import shutil

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from vlmedge.export.graphs import weights
from vlmedge.export.lowering import exporter
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.quant.files import staged_folder
from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest import TargetRecord
from vlmedge.runtime.bundle.manifest_file import read_manifest

CONTEXT = 48
COMPUTE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
PICTURE = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
ANSWER = GenerationOptions(max_new_tokens=6, ignore_eos=True)


def specs(tensors):
    return [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]


def answer(bundle):
    with Model.load(bundle, providers="cpu", num_threads=1) as model:
        return model.answer("Read it.", [PICTURE], options=ANSWER).token_ids


# --- the contract


@pytest.mark.parametrize("dtype", COMPUTE)
@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.0", "jetpack-7.2", "tensorrt-11"])
def test_inputs_and_outputs_are_those_of_the_contract(lower, target, dtype):
    bundle = lower("checkpoint", target, dtype)
    manifest = read_manifest(bundle)
    for name, size in (("vision", 588), ("vision_video", 1176)):
        graph = manifest.graphs[name]
        assert specs(graph.inputs) == [
            ("pixel_values", "uint8", ("num_images", "num_patches", size)),
            ("position_ids", "int64", ("num_images", "num_patches", 2)),
        ]
        ((output, kind, shape),) = specs(graph.outputs)
        assert (output, kind, shape[0], shape[2]) == ("image_embeds", "float32", "num_images", 128)
    appends = target in ("jetpack-6.2", "jetpack-7.0")
    old = ("batch", 2, "capacity" if appends else CONTEXT, 32)
    new = ("batch", 2, "sequence", 32) if appends else old
    parts = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    mask = ("batch", 1, "sequence", "total" if appends else CONTEXT)
    decoder = manifest.graphs["decoder"]
    assert sorted(specs(decoder.inputs)) == sorted(
        [
            ("inputs_embeds", "float32", ("batch", "sequence", 128)),
            ("position_ids", "int64", (3, "batch", "sequence")),
            ("logit_index", "int64", ("batch",)),
            ("attention_mask", "bool", mask),
            *([] if appends else [("write_indices", "int64", ("batch",))]),
            *((f"past_key_values.{part}", COMPUTE[dtype], old) for part in parts),
        ]
    )
    assert specs(decoder.outputs) == [
        ("logits", "float32", ("batch", 320)),
        *((f"present.{part}", COMPUTE[dtype], new) for part in parts),
    ]


@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.2"])
def test_the_manifest_says_what_the_files_say(lower, target):
    bundle = lower("checkpoint", target, "bf16")
    manifest = read_manifest(bundle)
    for graph in manifest.graphs.values():
        model = onnx.load(bundle / graph.file, load_external_data=False).graph
        for said, held in ((graph.inputs, model.input), (graph.outputs, model.output)):
            assert [tensor.name for tensor in said] == [value.name for value in held]
            for tensor, value in zip(said, held, strict=True):
                dims = value.type.tensor_type.shape.dim
                assert tensor.shape == tuple(d.dim_param or d.dim_value for d in dims)
                kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                assert tensor.dtype == kind.name


def test_the_target_is_recorded(lower):
    for target, tensorrt, cache, capacity in (
        ("jetpack-6.2", "10.3", "append", None),
        ("jetpack-7.2", "10.16", "in_place", CONTEXT),
    ):
        for dtype, name in COMPUTE.items():
            manifest = read_manifest(lower("checkpoint", target, dtype))
            record = TargetRecord(target, tensorrt, name, cache, capacity)
            assert (manifest.flavor, manifest.target) == ("tensorrt", record)


@pytest.mark.parametrize("source", ["checkpoint", "orin"])
def test_every_file_is_listed_with_its_size_and_hash(lower, source):
    bundle = lower(source, "jetpack-6.2", "bf16")
    manifest = read_manifest(bundle)
    assert {path.name for path in bundle.iterdir()} == {*manifest.files, "manifest.json"}
    for name, record in manifest.files.items():
        content = (bundle / name).read_bytes()
        assert record.bytes == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_the_same_export_twice_is_the_same_bytes(get_source, tmp_path):
    options = LoweringOptions("jetpack-6.2", "bf16")
    first, second = (
        export_for_target(get_source("orin"), tmp_path / name, options) for name in ("one", "two")
    )
    assert first == second
    assert first == read_manifest(tmp_path / "one")


def test_both_vision_graphs_share_all_weights_but_the_patch_embedding(lower):
    graphs = [
        onnx.load(lower("orin", "jetpack-6.2", "bf16") / f"{name}.onnx", load_external_data=False)
        for name in ("vision", "vision_video")
    ]
    image, video = (
        {t.name: [e.value for e in t.external_data] for t in g.graph.initializer if t.external_data}
        for g in graphs
    )
    differing = {name for name in {*image, *video} if image.get(name) != video.get(name)}
    assert len(image) > 20
    assert differing
    assert all(name.startswith("visual.patch_embed.proj.weight.") for name in differing)


def test_progress_rises_to_all_bytes(get_source, tmp_path):
    seen = []
    options = LoweringOptions("jetpack-6.2")
    export_for_target(get_source("orin"), tmp_path / "b", options, lambda *a: seen.append(a))
    done, totals, names = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert {done[-1]} == set(totals)
    assert set(names) == {"vision.onnx.data", "decoder.onnx.data", "embedding.bin"}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("checkpoint", "jetpack-7.2"),
        ("accurate", "jetpack-7.2"),
        ("orin", "jetpack-7.2"),
        ("thor", "jetpack-7.2"),
        ("signed", "tensorrt-rtx"),
        ("qdq", "tensorrt-rtx"),
    ],
)
def test_matrices_of_many_blocks_of_rows_are_those_of_one(
    get_source, lower, tmp_path, monkeypatch, source, target
):
    # The tiny matrices fit one block of work; real ones are hundreds, each with its first row.
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 1000)
    options = LoweringOptions(target, "bf16", CONTEXT)
    export_for_target(get_source(source), tmp_path / "out", options)
    whole = read_manifest(lower(source, target, "bf16"))
    assert read_manifest(tmp_path / "out").files == whole.files


@pytest.mark.parametrize(
    ("source", "target"), [("accurate", "jetpack-6.2"), ("orin", "jetpack-7.2")]
)
def test_every_code_is_read_once(get_source, tmp_path, monkeypatch, source, target):
    # Scales come along with their codes: what is rounded again is rounded once.
    read = []
    monkeypatch.setattr(
        weights.Block,
        "_read",
        lambda self, plain=weights.Block._read: read.append(self) or plain(self),
    )
    export_for_target(get_source(source), tmp_path / "out", LoweringOptions(target, "bf16"))
    codes = [(b.source.name, b.start) for b in read if b.source.name.endswith(".packed")]
    assert codes
    # The table's own copy of the lm_head is named otherwise
    assert len(set(codes)) == len(codes)


# --- what goes wrong


@pytest.fixture
def old_bundle(get_source, tmp_path):
    """A bundle that stands where the new one is to go; and how to see that it still does."""
    target = tmp_path / "bundle"
    before = export_for_target(get_source("fp32"), target, LoweringOptions("jetpack-7.0", "fp32"))

    def check():
        assert read_manifest(target) == before
        assert not any(".partial-" in name for name in os.listdir(tmp_path))

    check.path = target
    return check


def test_a_successful_export_replaces_the_old_bundle(get_source, old_bundle):
    made = export_for_target(get_source("orin"), old_bundle.path, LoweringOptions("jetpack-6.2"))
    assert read_manifest(old_bundle.path) == made


def test_fp8_for_orin_leaves_the_old_bundle(get_source, old_bundle):
    with pytest.raises(ValueError, match="quantize with --recipe orin"):
        export_for_target(get_source("thor"), old_bundle.path, LoweringOptions("jetpack-6.2"))
    old_bundle()
    options = LoweringOptions("jetpack-7.2", device="orin")
    with pytest.raises(ValueError, match="quantize with --recipe orin"):
        export_for_target(get_source("thor"), old_bundle.path, options)
    old_bundle()


def test_more_context_than_positions_leaves_the_old_bundle(get_source, old_bundle):
    options = LoweringOptions("jetpack-7.2", context=10**9)
    with pytest.raises(ValueError, match="the model has positions for"):
        export_for_target(get_source("fp32"), old_bundle.path, options)
    old_bundle()


def test_a_bundle_is_not_replaced_by_what_is_made_of_it(get_source, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(get_source("fp32"), folder)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    with pytest.raises(ValueError, match="is what is read"):
        export_for_target(folder / ".." / "bundle", folder, LoweringOptions("jetpack-6.2"))
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


def test_a_full_disk_is_said_before_anything_is_written(get_source, old_bundle, monkeypatch):
    usage = shutil.disk_usage(old_bundle.path)
    monkeypatch.setattr(staged_folder.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"0\.00 GB are free") as error:
        export_for_target(get_source("orin"), old_bundle.path, LoweringOptions("jetpack-6.2"))
    assert error.value.errno == errno.ENOSPC
    old_bundle()


@pytest.mark.parametrize("step", ["write_small", "write_data", "write_manifest"])
def test_an_error_half_way_leaves_the_old_bundle(get_source, old_bundle, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporter, step, fail)
    with pytest.raises(OSError, match="No space left"):
        export_for_target(get_source("checkpoint"), old_bundle.path, LoweringOptions("jetpack-6.2"))
    old_bundle()


def test_a_folder_that_is_no_bundle_is_left_alone(get_source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no bundle"):
        export_for_target(get_source("fp32"), tmp_path / "mine", LoweringOptions("jetpack-6.2"))
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


# --- links


@pytest.fixture(scope="session")
def wide_checkpoint(make_bundle, width):
    """Of float32, which ONNX Runtime's CPU can run as it is."""
    return make_bundle(width, dtype="F32")


def copy_of(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def linked(wide_checkpoint, tmp_path):
    """(checkpoint, bundle) of one target, beside each other."""
    source = copy_of(wide_checkpoint.checkpoint, tmp_path)
    options = LoweringOptions("jetpack-6.2", "fp32", link_weights=True)
    manifest = export_for_target(source, tmp_path / "bundle", options)
    return source, tmp_path / "bundle", manifest


def test_links_are_the_checkpoints_own_files(linked):
    source, bundle, manifest = linked
    shards = sorted(source.glob("*.safetensors"))
    assert shards
    for shard in shards:
        assert (bundle / shard.name).stat().st_ino == shard.stat().st_ino
        record = manifest.files[shard.name]
        assert record.sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
        assert record.sha256 == manifest.source.sha256[shard.name]
        assert record.bytes == shard.stat().st_size
    assert read_manifest(bundle) == manifest


def test_links_leave_little_to_write(linked):
    # What is folded or changes its type: the patch embedding with the pixels' mean, small biases.
    source, bundle, manifest = linked
    shards = {shard.name for shard in source.glob("*.safetensors")}
    written = sum(r.bytes for name, r in manifest.files.items() if name.endswith(".data"))
    table = manifest.embedding
    assert table.file in shards
    assert written < sum(manifest.files[name].bytes for name in shards) / 4
    assert "embedding.bin" not in manifest.files
    tensors = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
    out = np.zeros(table.shape, np.float32)
    Embeddings(bundle, table).gather(np.arange(table.shape[0]), out)
    assert out.tobytes() == tensors["model.embed_tokens.weight"].tobytes()


def test_linked_graphs_answer_as_written_ones(linked, wide_checkpoint, tmp_path):
    source, bundle, _ = linked
    export_for_target(source, tmp_path / "whole", LoweringOptions("jetpack-6.2", "fp32"))
    assert answer(bundle) == answer(tmp_path / "whole") == answer(wide_checkpoint.bundle)


def test_linked_bfloat16_refers_to_the_very_tensors(make_bundle, width, tmp_path):
    source = copy_of(make_bundle(width).checkpoint, tmp_path)
    options = LoweringOptions("jetpack-7.2", "bf16", CONTEXT, link_weights=True)
    export_for_target(source, tmp_path / "bundle", options)
    tensors = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
    # onnx's own reader refuses hard links (engines' loaders don't), so it reads a copy.
    bundle = shutil.copytree(tmp_path / "bundle", tmp_path / "copied")
    model = onnx.load(bundle / "decoder.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = [name for name in tensors if name in arrays and name.endswith("proj.weight")]
    assert len(found) == 14  # seven of each layer, each for itself: joined in the graph
    for name in found:
        assert arrays[name].tobytes() == tensors[name].tobytes()
    onnx.checker.check_model(bundle / "decoder.onnx", full_check=True)


def test_a_bundle_with_links_outlives_the_checkpoints_folder(linked):
    source, bundle, _ = linked
    before = answer(bundle)
    shutil.rmtree(source)
    assert answer(bundle) == before


def test_a_checkpoint_of_symbolic_links_is_linked_to_what_they_stand_for(wide_checkpoint, tmp_path):
    # As the hub's cache has them; loaders refuse symbolic links beside a graph.
    real = copy_of(wide_checkpoint.checkpoint, tmp_path)
    source = tmp_path / "snapshot"
    source.mkdir()
    for path in real.iterdir():
        (source / path.name).symlink_to(path)
    options = LoweringOptions("jetpack-6.2", "fp32", link_weights=True)
    export_for_target(source, tmp_path / "bundle", options)
    for shard in real.glob("*.safetensors"):
        made = tmp_path / "bundle" / shard.name
        assert not made.is_symlink()
        assert made.stat().st_ino == shard.stat().st_ino


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_links_to_another_type_are_refused(get_source, tmp_path, dtype):
    options = LoweringOptions("jetpack-6.2", dtype, link_weights=True)
    with pytest.raises(ValueError, match=f"--dtype {dtype}, this one has BF16: leave the option"):
        export_for_target(get_source("checkpoint"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_links_to_a_bundle_are_refused(get_source, tmp_path):
    options = LoweringOptions("jetpack-6.2", "fp32", link_weights=True)
    with pytest.raises(ValueError, match="give the checkpoint"):
        export_for_target(get_source("fp32"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_link_across_file_systems_is_told_and_leaves_the_old_bundle(
    wide_checkpoint, old_bundle, monkeypatch
):
    def fail(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(exporter.os, "link", fail)
    options = LoweringOptions("jetpack-6.2", "fp32", link_weights=True)
    with pytest.raises(OSError, match="write the bundle on the checkpoint's file system") as error:
        export_for_target(wide_checkpoint.checkpoint, old_bundle.path, options)
    assert error.value.errno == errno.EXDEV
    assert "Invalid cross-device link" in str(error.value)
    monkeypatch.undo()
    old_bundle()


def test_a_shard_that_is_all_norms_is_not_linked(wide_checkpoint, tmp_path):
    # Only what a graph refers to lies beside it.
    source = copy_of(wide_checkpoint.checkpoint, tmp_path)
    shards = sorted(source.glob("*.safetensors"))
    index = source / "model.safetensors.index.json"
    assert len(shards) == 2
    assert index.is_file()
    options = LoweringOptions("jetpack-6.2", "fp32", link_weights=True)
    manifest = export_for_target(source, tmp_path / "bundle", options)
    used = set()
    for graph in manifest.graphs.values():
        model = onnx.load(tmp_path / "bundle" / graph.file, load_external_data=False)
        for tensor in model.graph.initializer:
            used |= {e.value for e in tensor.external_data if e.key == "location"}
    used.add(manifest.embedding.file)
    named = {name for name in manifest.files if name.endswith((".safetensors", ".data", ".bin"))}
    assert named == used


def test_a_changed_checkpoint_is_noticed_by_its_hash(linked):
    # A link is the file itself: who writes to the one writes to the other.
    source, bundle, manifest = linked
    shard = next(iter(sorted(source.glob("*.safetensors"))))
    tensors = {name: array.copy() for name, array in load_file(shard).items()}
    name = next(iter(tensors))
    tensors[name].reshape(-1)[0] += 1
    content = shard.read_bytes()
    save_file(tensors, source / "other")
    with shard.open("r+b") as file:
        file.write((source / "other").read_bytes()[: len(content)])
    digest = hashlib.sha256((bundle / shard.name).read_bytes()).hexdigest()
    assert digest != manifest.files[shard.name].sha256


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoweringOptions("jetpack-6.2").dtype = "fp16"
