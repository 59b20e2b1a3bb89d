"""Bytes of weights: to the byte those of the files that exports, recipes and targets write."""

from pathlib import Path

import onnx
import pytest

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.export.lowering.targets import TARGETS
from vlmedge.export.planning.model_shapes import Matrix
from vlmedge.export.planning.onnx_header import read_initializers
from vlmedge.export.planning.precision import (
    ModelPrecision,
    lower_precision,
    parse_precision,
    read_coverage,
    read_precision,
)
from vlmedge.export.planning.weight_bytes import (
    DATA_FILES,
    INLINE_BYTES,
    _list_matrix,
    list_tensors,
    matrix_bytes,
    measure_data_files,
    measure_table,
    onnxruntime_rules,
    sum_parts,
    tensorrt_rules,
)
from vlmedge.quant.recipe.toml import open_recipe
from vlmedge.runtime.bundle.manifest_file import read_manifest

READER = Path(__file__).parents[3] / "samples" / "reader"
PRESETS = ("accurate", "cpu", "orin", "smallest", "thor")
PAGE = 4096


def read_external(bundle, graph):
    """Name -> bytes of the tensors beside a graph, by the onnx package."""
    loaded = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
    return {
        tensor.name: int({entry.key: entry.value for entry in tensor.external_data}["length"])
        for tensor in loaded.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def list_external(shapes, precision, graph, *, by_recipe):
    tensors = list_tensors(shapes, precision, onnxruntime_rules(), graph, by_recipe=by_recipe)
    return {tensor.name: tensor.nbytes for tensor in tensors if not tensor.is_inline}


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
def test_an_exports_files_and_tensors_come_out_to_the_byte(make_bundle, read_shapes, size, weights):
    made = make_bundle(size, weights)
    check_export(made.checkpoint, made.bundle, read_shapes)


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_the_samples_files_come_out_to_the_byte(read_shapes, tmp_path, weights):
    export_checkpoint(READER, tmp_path / "bundle", ExportOptions(weights))
    check_export(READER, tmp_path / "bundle", read_shapes)


def check_export(checkpoint, bundle, read_shapes):
    manifest, shapes = read_manifest(bundle), read_shapes(checkpoint)
    precision = read_coverage(manifest.coverage, "float")
    for graph in DATA_FILES:
        listed = list_external(shapes, precision, graph, by_recipe=False)
        assert listed == read_external(bundle, graph)
    sizes = measure_data_files(shapes, precision, onnxruntime_rules(), by_recipe=False)
    assert sizes == {name: manifest.files[name].bytes for name in sizes}
    table = measure_table(shapes, precision, "bfloat16", None)
    assert table == manifest.files["embedding.bin"].bytes


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_tensors_come_out_to_the_byte(quantized, read_shapes, name):
    made = quantized(name)
    shapes, manifest = read_shapes(made.checkpoint), read_manifest(made.bundle)
    precision = read_precision(name, shapes, "float32")
    for graph in DATA_FILES:
        listed = list_external(shapes, precision, graph, by_recipe=True)
        assert listed == read_external(made.bundle, graph), graph
    own = {n: r.bytes for n, r in manifest.files.items() if n.startswith("embedding")}
    assert measure_table(shapes, precision, "bfloat16", None) == sum(own.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_files_come_out_to_the_byte_or_to_pages(quantized, read_shapes, name):
    """Norms that scales were folded into are written again, behind those that were not: which,
    the data decide, and with the order a file's padding.
    """
    made = quantized(name)
    shapes, manifest = read_shapes(made.checkpoint), read_manifest(made.bundle)
    precision = read_precision(name, shapes, "float32")
    sizes = measure_data_files(shapes, precision, onnxruntime_rules(), by_recipe=True)
    recipe = open_recipe(name)
    for file, size in sizes.items():
        folds = any(
            "awq" in p.method or p.format == "int8" for p in (recipe.vision, recipe.decoder)
        )
        slack = 4 * PAGE if folds else 0
        assert abs(size - manifest.files[file].bytes) <= slack, file


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["float", *PRESETS])
def test_lowered_weights_come_out_to_the_byte(lowered, read_shapes, name, target):
    if name == "thor" and target == "jetpack-6.2":
        pytest.skip("refused: an Orin has no FP8")
    made = lowered(name, target)
    shapes = read_shapes(made.checkpoint)
    raw = read_precision(name, shapes, "bfloat16")
    precision = lower_precision(raw, shapes, TARGETS[target], "bfloat16")
    rules = tensorrt_rules("bfloat16")
    for graph in DATA_FILES:
        stored = [
            tensor
            for tensor in read_initializers(made.bundle / f"{graph}.onnx")
            if tensor.shape and tensor.name.startswith(("visual.", "model.", "lm_head"))
        ]
        listed = list_tensors(shapes, precision, rules, graph, by_recipe=name != "float")
        assert sum(t.nbytes for t in listed) == sum(t.nbytes for t in stored), graph
    head = parse_precision((raw.layers or {})["lm_head"]) if raw.table == "lm_head" else None
    manifest = read_manifest(made.bundle)
    own = sum(r.bytes for n, r in manifest.files.items() if n.startswith("embedding"))
    assert measure_table(shapes, raw, "bfloat16", head) == own


def test_the_exported_2b_has_the_bytes_that_were_written(model):
    """Files of a full-size export of random weights, `vlmedge export --weights fp32`."""
    shapes, nothing = model("2b").shapes, ModelPrecision()
    sizes = measure_data_files(shapes, nothing, onnxruntime_rules(), by_recipe=False)
    assert sizes == {"vision.onnx.data": 2_664_739_840, "decoder.onnx.data": 6_174_973_952}
    assert measure_table(shapes, nothing, "bfloat16", None) == 466_747_392


@pytest.mark.parametrize(("name", "gigabytes"), [("orin", 1.66), ("smallest", 1.32)])
def test_the_quantized_2b_has_the_size_that_was_measured(model, name, gigabytes):
    """Of whole bundles of full-size random weights, scripts/bench_quantize.py."""
    shapes = model("2b").shapes
    precision = read_precision(name, shapes, "float32")
    sizes = measure_data_files(shapes, precision, onnxruntime_rules(), by_recipe=True)
    table = measure_table(shapes, precision, "bfloat16", None)
    assert (sum(sizes.values()) + table) / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_2b_in_bfloat16_has_the_bytes_of_its_parameters(model):
    """2,208,985,600 parameters at two bytes, the table of 233,373,696 once more as lm_head."""
    found = model("2b")
    rules, nothing = tensorrt_rules("bfloat16"), ModelPrecision()
    parts = {"vision": 0, "decoder": 0, "lm_head": 0}
    for graph in ("vision_video", "decoder"):
        tensors = list_tensors(found.shapes, nothing, rules, graph, by_recipe=False)
        for part, size in sum_parts(tensors).items():
            parts[part] += size
    assert parts["lm_head"] == 2 * 233_373_696
    norms = 32 * 4 * 1280 + 2 * 1280 + 57 * 1536  # stay float32
    patches = 1_505_280  # too, with a bias of the folded mean
    parameters = 2_208_985_600 - 233_373_696
    wanted = 2 * parameters + 2 * norms + 2 * patches + 4 * 1280
    assert parts["vision"] + parts["decoder"] == wanted
    assert measure_table(found.shapes, nothing, "bfloat16", None) == 2 * 233_373_696


def test_a_matrix_of_blocks_has_its_codes_and_a_scale_a_block():
    matrix = Matrix("m", "decoder", "new tokens", 10, 130, has_bias=True)
    precision = ModelPrecision(layers={"m": "int4 block 64"})
    # 3 blocks of 32 bytes and 3 scales a row, the last block padded
    assert matrix_bytes(matrix, precision, onnxruntime_rules()) == 10 * (3 * 32 + 3 * 4)
    # 65 bytes a row, no padding, and scales of two bytes
    assert matrix_bytes(matrix, precision, tensorrt_rules("bfloat16")) == 10 * 65 + 10 * 3 * 2


def test_small_tensors_of_a_recipe_are_in_the_graph():
    assert INLINE_BYTES == 64
    matrix = Matrix("m", "decoder", "new tokens", 16, 32)
    precision = ModelPrecision(layers={"m": "int8 static"})
    tensors = _list_matrix(matrix, precision, onnxruntime_rules(), by_recipe=True)
    assert [(t.nbytes, t.is_inline) for t in tensors] == [(512, False), (64, True), (16, True)]
