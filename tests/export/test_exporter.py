"""The written bundle is what its manifest says, and an export that fails leaves the old one."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from vlmedge.export import exporter
from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.checkpoint.shapes import expected_shapes
from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.export.verify.selfcheck import check_bundle
from vlmedge.quant.files import staged_folder as bundle_module
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.errors import BundleError

FORMATS = ["fp32", "fp16", "int8", "int4"]
KILLED = """
import os, signal, sys
from vlmedge.export.exporter import export_checkpoint

def progress(done, total, name):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

export_checkpoint(sys.argv[1], sys.argv[2], progress=progress)
"""


def read_graph(folder, name):
    return onnx.load(folder / f"{name}.onnx", load_external_data=False)


def external(model):
    """Initializer name -> (file, offset, length)."""
    found = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            place = (entries["location"], int(entries["offset"]), int(entries["length"]))
            found[tensor.name] = place
    return found


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, read_only_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / request.param
    checkpoint = read_only_checkpoint()
    return (
        request.param,
        folder,
        export_checkpoint(checkpoint, folder, ExportOptions(request.param)),
    )


def test_the_manifest_is_read_back_as_it_was_returned(exported):
    _, folder, manifest = exported
    assert read_manifest(folder) == manifest


def test_every_file_is_listed_with_its_size_and_hash(exported):
    _, folder, manifest = exported
    assert {path.name for path in folder.iterdir()} == {*manifest.files, "manifest.json"}
    for name, record in manifest.files.items():
        content = (folder / name).read_bytes()
        assert record.bytes == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_hashes_of_the_source_are_those_of_its_files(exported, read_only_checkpoint):
    _, _, manifest = exported
    checkpoint = read_only_checkpoint()
    assert set(manifest.source.sha256) == {
        "config.json",
        *(path.name for path in checkpoint.glob("*.safetensors")),
    }
    for name, digest in manifest.source.sha256.items():
        assert digest == hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()


def test_selfcheck_passes(exported):
    _, folder, _ = exported
    assert {check.name for check in check_bundle(folder)} == {"vision", "vision_video", "decoder"}


def test_graph_inputs_and_outputs_are_those_of_the_contract(exported):
    _, _, manifest = exported
    assert [(s.name, s.dtype, s.shape) for s in manifest.graphs["vision"].inputs] == [
        ("pixel_values", "uint8", ("num_images", "num_patches", 588)),
        ("position_ids", "int64", ("num_images", "num_patches", 2)),
    ]
    assert manifest.graphs["vision_video"].inputs[0].shape[-1] == 1176
    decoder = manifest.graphs["decoder"]
    cache = ("batch", 2, "capacity", 16)
    assert [(s.name, s.dtype, s.shape) for s in decoder.inputs] == [
        ("inputs_embeds", "float32", ("batch", "sequence", 64)),
        ("position_ids", "int64", (3, "batch", "sequence")),
        ("seqlens_k", "int32", ("batch",)),
        ("total_sequence_length", "int32", ()),
        ("logit_index", "int64", ("batch",)),
        *(
            (f"past_key_values.{i}.{part}", "float32", cache)
            for i in range(2)
            for part in ("key", "value")
        ),
    ]
    assert [(s.name, s.shape) for s in decoder.outputs] == [
        ("logits", ("batch", 320)),
        *((f"present.{i}.{part}", cache) for i in range(2) for part in ("key", "value")),
    ]


def test_both_vision_graphs_share_all_weights_but_the_patch_embedding(exported):
    _, folder, _ = exported
    image, video = (external(read_graph(folder, name)) for name in ("vision", "vision_video"))
    assert {place[0] for place in [*image.values(), *video.values()]} == {"vision.onnx.data"}
    differing = {name for name in {*image, *video} if image.get(name) != video.get(name)}
    assert differing
    assert all(name.startswith("visual.patch_embed.proj.weight.") for name in differing)


def test_the_precision_of_every_tensor_is_recorded(exported, read_only_checkpoint):
    format, _, manifest = exported
    spec = open_checkpoint(read_only_checkpoint()).spec
    assert set(manifest.precision) == {*expected_shapes(spec), "lm_head.weight"}
    names = {"fp32": "float32", "fp16": "float16"}
    names |= {"int8": "int8 block 128", "int4": "int4 block 64"}
    int4 = format == "int4"
    precision = manifest.precision
    assert precision["model.layers.0.mlp.down_proj.weight"] == names[format]
    assert precision["visual.merger.mlp.0.weight"] == names["int8" if int4 else format]
    assert precision["lm_head.weight"] == names["int8" if int4 else format]
    assert precision["model.embed_tokens.weight"] == "bfloat16"
    assert precision["model.norm.weight"] == precision["visual.blocks.0.attn.qkv.bias"] == "float32"


def test_the_embedding_table_is_the_checkpoints_bytes(exported, read_only_checkpoint):
    _, folder, manifest = exported
    source = open_checkpoint(read_only_checkpoint()).tensors["model.embed_tokens.weight"]
    content = source.path.read_bytes()[source.offset : source.offset + source.nbytes]
    assert (folder / manifest.embedding.file).read_bytes() == content


def test_node_names_say_where(exported):
    format, folder, _ = exported
    nodes = [node.name for node in read_graph(folder, "decoder").graph.node]
    assert len(nodes) == len(set(nodes))
    kind = "MatMulNBits" if format in ("int8", "int4") else "MatMul"
    assert f"/model/layers.0/attn/o_proj/{kind}" in nodes


def test_the_same_export_twice_is_the_same_bytes(read_only_checkpoint, tmp_path):
    first, second = (
        export_checkpoint(read_only_checkpoint(), tmp_path / name, ExportOptions("int4"))
        for name in ("one", "two")
    )
    assert first == second


def test_each_part_may_have_its_own_format(read_only_checkpoint, tmp_path):
    options = ExportOptions("int4", "fp16", "fp32", block_size=32)
    precision = export_checkpoint(read_only_checkpoint(), tmp_path / "b", options).precision
    assert precision["model.layers.1.mlp.up_proj.weight"] == "int4 block 32"
    assert precision["visual.blocks.0.attn.qkv.weight"] == "float16"
    assert precision["lm_head.weight"] == "float32"


def test_blocks_are_longer_where_they_cost_no_accuracy():
    options = ExportOptions("int4")
    assert [str(part) for part in (options.decoder, options.vision, options.lm_head)] == [
        "int4 block 64",
        "int8 block 128",
        "int8 block 128",
    ]
    assert str(ExportOptions("int8", block_size=16).lm_head) == "int8 block 16"
    assert str(ExportOptions("fp16", block_size=16).lm_head) == "float16"


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_the_table_keeps_the_checkpoints_float_type(read_only_checkpoint, tmp_path, dtype):
    manifest = export_checkpoint(read_only_checkpoint(dtype=dtype), tmp_path / "b")
    assert manifest.embedding.dtype == {"F16": "float16", "F32": "float32"}[dtype]


@pytest.mark.parametrize(
    "options",
    [{"weights": "int3"}, {"vision_weights": "q4"}, {"block_size": 48}, {"weights": None}],
)
def test_an_unknown_option_is_refused_where_it_is_made(options):
    with pytest.raises(ValueError, match="needed one of"):
        ExportOptions(**options)


def test_progress_rises_to_all_bytes(read_only_checkpoint, tmp_path):
    seen = []
    export_checkpoint(read_only_checkpoint(), tmp_path / "b", progress=lambda *a: seen.append(a))
    done, totals, names = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert {done[-1]} == set(totals)
    assert set(names) == {"vision.onnx.data", "decoder.onnx.data", "embedding.bin"}


def spoil_tensor(checkpoint, name):
    """Put a NaN into the last element of a bfloat16 tensor."""
    source = open_checkpoint(checkpoint).tensors[name]
    with source.path.open("r+b") as file:
        file.seek(source.offset + source.nbytes - 2)
        file.write(b"\xc0\x7f")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.embed_tokens.weight",
        "visual.patch_embed.proj.weight",
        "visual.merger.ln_q.bias",
    ],
)
def test_a_nan_is_named_and_the_old_bundle_stays(checkpoint, tmp_path, name, format):
    target = tmp_path / "bundle"
    before = export_checkpoint(checkpoint, target)
    spoil_tensor(checkpoint, name)
    with pytest.raises(ValueError, match="NaN or infinite") as error:
        export_checkpoint(checkpoint, target, ExportOptions(format))
    assert name in str(error.value)
    assert read_manifest(target) == before
    assert sorted(os.listdir(tmp_path)) == ["bundle", "checkpoint"]


def test_a_missing_tensor_leaves_the_old_bundle_and_no_trace(checkpoint, tmp_path):
    target = tmp_path / "bundle"
    before = export_checkpoint(checkpoint, target)
    path = checkpoint / "model-00002-of-00002.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        export_checkpoint(checkpoint, target)
    assert read_manifest(target) == before
    assert sorted(os.listdir(tmp_path)) == ["bundle", "checkpoint"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_killed_export_leaves_the_old_bundle_or_none(checkpoint, tmp_path, exists):
    target = tmp_path / "bundle"
    before = export_checkpoint(checkpoint, target, ExportOptions("int8")) if exists else None
    run = subprocess.run([sys.executable, "-c", KILLED, str(checkpoint), str(target)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert target.exists() == exists
    if exists:
        assert read_manifest(target) == before
    assert any(".bundle.partial-" in name for name in os.listdir(tmp_path))
    after = export_checkpoint(checkpoint, target)
    assert read_manifest(target) == after
    assert sorted(os.listdir(tmp_path)) == ["bundle", "checkpoint"]


def test_a_full_disk_is_said_before_anything_is_written(checkpoint, tmp_path, monkeypatch):
    usage = bundle_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(bundle_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"0\.00 GB are free"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_disk_that_fills_up_half_way_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(exporter, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_selfcheck_names_a_graph_that_is_not_what_the_manifest_says(checkpoint, tmp_path):
    target = tmp_path / "bundle"
    manifest = export_checkpoint(checkpoint, target)
    graphs = dataclasses.asdict(manifest)
    graphs["graphs"]["decoder"]["outputs"][0]["shape"] = ["batch", 321]
    (target / "manifest.json").write_text(seal_manifest(graphs))
    with pytest.raises(BundleError, match=r"decoder\.onnx: outputs .*320.*321"):
        check_bundle(target)


def test_selfcheck_names_a_graph_that_computes_nonsense(checkpoint, tmp_path):
    target = tmp_path / "bundle"
    export_checkpoint(checkpoint, target)
    name, offset, length = external(read_graph(target, "decoder"))["model.norm.weight"]
    with (target / name).open("r+b") as file:
        file.seek(offset)
        file.write(np.full(length // 4, np.nan, np.float32).tobytes())
    with pytest.raises(BundleError, match=r"decoder\.onnx: logits is not finite"):
        check_bundle(target)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"],
)
@pytest.mark.parametrize(
    ("added", "message"),
    [('"x": 1, "x": 2', "the key 'x' twice"), ('"x": 1e999', "1e999"), ('"x": NaN', "NaN")],
)
def test_json_that_programs_may_read_differently_is_refused(
    checkpoint, tmp_path, name, added, message
):
    path = checkpoint / name
    path.write_text(path.read_text(encoding="utf-8").replace("{", "{" + added + ",", 1))
    with pytest.raises(ValueError, match=message) as caught:
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert name in str(caught.value)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_name_that_no_manifest_may_hold_is_refused_before_the_work(checkpoint, tmp_path):
    checkpoint = checkpoint.rename(checkpoint.with_name("a\nb"))
    with pytest.raises(ValueError, match=r"U\+000A"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["a\nb"]
