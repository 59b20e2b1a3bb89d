"""Rows of every form of the table, read as the host reads them, against numpy and ml_dtypes."""

import dataclasses
import shutil

import ml_dtypes
import numpy as np
import onnx
import pytest

from vlmedge.quant.graph.files import locate, read_graph
from vlmedge.quant.graph.linears import GraphWeights
from vlmedge.quant.quantize import embedding_table as table_module
from vlmedge.quant.quantize.embedding_table import is_tied, measure_table, write_table
from vlmedge.quant.quantize.quantize import plan_bundle, quantize_bundle
from vlmedge.quant.recipe.recipe import LinearRecipe, Recipe, TableRecipe
from vlmedge.quant.recipe.toml import open_recipe
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest

FP8 = ml_dtypes.float8_e4m3fn


def read_rows(folder, manifest):
    """float32[V, D], as the runtime reads them."""
    rows = np.empty(manifest.embedding.shape, np.float32)
    Embeddings(folder, manifest.embedding).gather(np.arange(len(rows)), rows)
    return rows


def read_initializers(bundle):
    """The decoder's constants by name, by onnx's own reader."""
    model = onnx.load(bundle / "decoder.onnx")
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def table_recipe(format):
    return f'name = "table-{format}"\n[embedding]\nformat = "{format}"\n'


def head_recipe(bits, block_size):
    return (
        f'name = "head-{bits}-{block_size}"\n[lm_head]\nformat = "int{bits}-weight"\n'
        f'block_size = {block_size}\n[embedding]\nformat = "lm_head"\n'
    )


@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_a_rows_numbers_are_its_codes_times_its_own_scale(quantize, size, format):
    made = quantize(table_recipe(format), size)
    rows = read_rows(made.source, read_manifest(made.source))
    amax = np.abs(rows).max(axis=1, keepdims=True)
    if format == "int8":
        scales = amax / np.float32(127)
        needed = np.rint(rows / scales) * scales
    else:
        scales = amax / np.float32(448)
        needed = (rows / scales).astype(FP8).astype(np.float32) * scales
    np.testing.assert_array_equal(read_rows(made.bundle, made.manifest), needed)
    assert made.manifest.embedding.dtype == {"int8": "int8", "fp8": "float8_e4m3fn"}[format]


@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
def test_a_float_table_is_copied_bit_for_bit(quantize, size):
    made = quantize('name = "float"\n', size)
    old = read_manifest(made.source)
    assert made.manifest.embedding == old.embedding
    name = old.embedding.file
    assert (made.bundle / name).read_bytes() == (made.source / name).read_bytes()


@pytest.mark.parametrize(("bits", "block_size"), [(8, 32), (8, 128), (4, 16), (4, 128)])
def test_a_shared_table_is_the_heads_own_matrix(quantize, bits, block_size):
    made = quantize(head_recipe(bits, block_size))
    tensors = read_initializers(made.bundle)
    packed, scales = tensors["lm_head.weight.packed"], tensors["lm_head.weight.scales"]
    codes = packed.reshape(*packed.shape[:2], -1).astype(int)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    values = (codes - 2 ** (bits - 1)).astype(np.float32) * scales.reshape(*codes.shape[:2], 1)
    num_tokens, size = made.manifest.embedding.shape
    needed = values.reshape(num_tokens, -1)[:, :size]
    np.testing.assert_array_equal(read_rows(made.bundle, made.manifest), needed)
    # and those are the checkpoint's, to the head's own rounding
    exact = read_rows(made.source, read_manifest(made.source))
    error = np.linalg.norm(needed - exact) / np.linalg.norm(exact)
    assert error < (0.01 if bits == 8 else 0.15)


def test_a_shared_table_has_no_file_of_its_own_and_points_into_the_decoders(quantize):
    made = quantize(head_recipe(8, 32))
    table = made.manifest.embedding
    assert sorted(path.name for path in made.bundle.iterdir()) == sorted(
        [*made.manifest.files, "manifest.json"]
    )
    assert not any("embedding" in name for name in made.manifest.files)
    model = onnx.load(made.bundle / "decoder.onnx", load_external_data=False)
    places = {t.name: locate(t) for t in model.graph.initializer if t.external_data}
    file, offset, length = places["lm_head.weight.packed"]
    assert (table.file, table.offset) == (file, offset) == ("decoder.onnx.data", offset)
    assert length == np.prod(table.stored_shape)
    assert places["lm_head.weight.scales"][:2] == (
        table.packing.scales_file,
        table.packing.scales_offset,
    )


@pytest.mark.parametrize("format", ["float", "int8", "fp8"])
def test_tables_are_written_in_blocks_of_rows_and_as_large_as_announced(
    make_bundle, tmp_path, monkeypatch, format
):
    source = make_bundle("tiny").bundle
    table = read_manifest(source).embedding
    contents, counts = [], []
    for block_rows in (7, 10_000):
        monkeypatch.setattr(table_module, "BLOCK_ROWS", block_rows)
        folder = tmp_path / str(block_rows)
        folder.mkdir()
        written = write_table(source, table, format, folder, counts.append)
        contents.append({name: (folder / name).read_bytes() for name in written.files})
        assert sum(map(len, contents[-1].values())) == measure_table(source, table, format)
    assert contents[0] == contents[1]
    codes = len(contents[0][table.file])
    assert sum(counts) == 2 * codes
    assert measure_table(source, table, "lm_head") == 0


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_beside_a_head_of_its_own_the_table_is_int8_and_coverage_says_why(
    make_bundle, tmp_path, weights
):
    recipe = Recipe("x", lm_head=LinearRecipe("int8-weight"), embedding=TableRecipe("lm_head"))
    source = make_bundle("tiny-7b", weights).bundle
    made = quantize_bundle(source, tmp_path / "q", recipe).manifest
    alone = dataclasses.replace(recipe, embedding=TableRecipe("int8"))
    by_name = quantize_bundle(source, tmp_path / "int8", alone).manifest
    assert made.embedding == by_name.embedding
    assert made.files == by_name.files
    (entry,) = [entry for entry in made.coverage if entry.kind == "table"]
    assert entry.precision == "int8 rows"
    assert entry.reason == "fallback: the lm_head is another matrix"
    exact = read_rows(source, read_manifest(source))
    rows = read_rows(tmp_path / "q", made)
    assert np.linalg.norm(rows - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("preset", ["cpu", "orin", "smallest"])
def test_presets_that_share_the_head_can_be_planned_for_a_model_of_two_matrices(
    make_bundle, preset
):
    bundle = make_bundle("tiny-7b").bundle
    plan = plan_bundle(bundle, read_manifest(bundle), open_recipe(preset))
    assert plan.recipe.embedding.format == "int8"
    assert plan.table_reason.startswith("fallback")


def test_a_tied_head_in_float16_is_still_tied(quantize):
    # bfloat16 values next to 0 are no float16 values: table and head differ in their last bits.
    made = quantize(head_recipe(8, 32), weights="fp16")
    exact = read_rows(made.source, read_manifest(made.source))
    rows = read_rows(made.bundle, made.manifest)
    assert np.linalg.norm(rows - exact) < 0.01 * np.linalg.norm(exact)


def test_one_other_number_in_the_last_row_is_seen(make_bundle, tmp_path):
    bundle = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    weights = GraphWeights(bundle, read_graph(bundle, manifest, "decoder"))
    assert is_tied(bundle, manifest.embedding, weights)
    with (bundle / manifest.embedding.file).open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x12\x34")
    assert not is_tied(bundle, manifest.embedding, weights)
