"""What a plan reads of a folder, a hub id and a bundle."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.planning.sources import open_model
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.inputs.request import RequestMaker


def test_a_config_alone_is_enough(model):
    found = model("2b")
    assert (found.name, found.stored, found.tied_lm_head) == ("qwen2-vl-2b", "bfloat16", True)
    assert found.count is None
    assert found.precision is None
    assert found.pixels.max_pixels == 1280 * 28 * 28


@pytest.mark.parametrize("kind", ["float", "orin", "jetpack-6.2", "tensorrt-rtx"])
def test_a_bundle_has_the_shapes_of_its_checkpoint(make_bundle, quantized, lowered, kind):
    made = make_bundle("tiny") if kind == "float" else None
    made = made or (quantized(kind) if kind == "orin" else lowered("orin", kind))
    found = open_model(made.bundle)
    assert found.shapes == open_model(made.checkpoint).shapes
    assert found.manifest is not None
    assert found.manifest.decoder.vocab_size == found.shapes.table_rows


def test_a_bundle_with_linked_weights_is_read_too(checkpoint_script, tmp_path):
    folder = checkpoint_script.make_checkpoint(tmp_path / "c", "tiny")
    options = LoweringOptions("jetpack-6.2", link_weights=True)
    export_for_target(folder, tmp_path / "b", options)
    found = open_model(tmp_path / "b")
    assert found.shapes == open_model(folder).shapes
    assert found.tensors is not None
    head = [t for t in found.tensors["decoder"] if t.part == "lm_head"]
    assert [t.nbytes for t in head] == [320 * 64 * 2]
    assert found.table_bytes == 320 * 64 * 2


def test_a_bundles_tensors_are_those_of_its_files(make_bundle):
    bundle = make_bundle("tiny").bundle
    found, manifest = open_model(bundle), read_manifest(bundle)
    assert found.tensors is not None
    files = {
        "vision.onnx.data": found.tensors["vision"] + found.tensors["vision_video"],
        "decoder.onnx.data": found.tensors["decoder"],
    }
    for file, tensors in files.items():
        total = sum({tensor.name: tensor.nbytes for tensor in tensors}.values())
        assert 0.9 * manifest.files[file].bytes < total < 1.01 * manifest.files[file].bytes
    assert {t.part for t in found.tensors["decoder"]} == {"decoder", "lm_head"}


def test_prompts_are_counted_as_the_runtime_encodes_them(make_bundle):
    bundle = make_bundle("tiny").bundle
    found = open_model(bundle)
    maker = RequestMaker(bundle, read_manifest(bundle), None)
    picture = np.zeros((56, 84, 3), np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "image", "image": picture}]
    request = maker.make([{"role": "user", "content": content}])
    tokens = [visual.num_tokens for visual in request.visuals]
    assert found.count is not None
    assert found.count(tokens, []) == len(request.input_ids)
    checkpoint = open_model(make_bundle("tiny").checkpoint)
    assert checkpoint.count is not None
    assert checkpoint.count(tokens, []) == len(request.input_ids)


def test_a_clip_is_counted_with_its_own_pads(make_bundle):
    found = open_model(make_bundle("tiny").bundle)
    assert found.count is not None
    assert found.count([4], [6]) - found.count([4], [5]) == 1
    assert found.count([], [6]) == found.count([6], [])


def test_a_tokenizer_without_a_template_is_not_used(config_folder, make_bundle, tmp_path):
    folder = shutil.copytree(config_folder("tiny"), tmp_path / "c")
    shutil.copy(make_bundle("tiny").bundle / "tokenizer.json", folder)
    assert open_model(folder).count is None


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": None, "dtype": "float32"}, "float32"),
        ({"torch_dtype": None}, "bfloat16"),
    ],
)
def test_the_tables_type_is_the_configs(config_folder, tmp_path, changes, stored):
    folder = shutil.copytree(config_folder("tiny"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(folder).stored == stored


def test_an_unknown_type_is_named(config_folder, tmp_path):
    folder = shutil.copytree(config_folder("tiny"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "int8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        open_model(folder)


def test_another_architecture_is_refused(config_folder, tmp_path):
    folder = shutil.copytree(config_folder("tiny"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen3_vl"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unsupported architecture"):
        open_model(folder)


def test_neither_folder_nor_hub_id_is_said(tmp_path):
    with pytest.raises(ValueError, match="neither a directory nor a hub id"):
        open_model(tmp_path / "gone")


def test_of_a_hub_id_only_small_files_are_fetched(config_folder, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(config_folder("2b"))

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert open_model("Qwen/Qwen2-VL-2B-Instruct").name == "Qwen/Qwen2-VL-2B-Instruct"
    assert asked == {"Qwen/Qwen2-VL-2B-Instruct": ["*.json", "*.jinja"]}


def test_a_hub_that_is_not_reached_is_one_line(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise OSError("no network\nand more")

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    with pytest.raises(ValueError, match=r"could not be fetched: no network$"):
        open_model("Qwen/Qwen2-VL-2B-Instruct")


def test_a_damaged_bundle_is_refused(make_bundle, tmp_path):
    folder = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "b")
    path = folder / "decoder.onnx"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleError, match="is no ONNX model"):
        open_model(folder)


def test_a_context_stretched_by_yarn_can_be_planned(config_folder, tmp_path):
    folder = shutil.copytree(config_folder("tiny"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    trained = config["max_position_embeddings"]
    config["rope_scaling"] |= {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": trained,
    }
    (folder / "config.json").write_text(json.dumps(config))
    found = open_model(folder)
    assert found.decoder.max_position_embeddings == 4 * trained
