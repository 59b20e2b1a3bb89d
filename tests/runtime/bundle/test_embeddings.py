import json
import shutil

import ml_dtypes
import numpy as np
import onnx
import pytest

from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.bundle.embedding_table import Blocks, EmbeddingTable, RowScales
from vlmedge.runtime.bundle.embeddings import Embeddings, scatter_visual_rows
from vlmedge.runtime.bundle.manifest import MANIFEST_NAME
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.errors import BundleError

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_read_exactly(tmp_path, dtype):
    table = np.random.default_rng(0).normal(size=(20, 6)).astype(DTYPES[dtype])
    (tmp_path / "embed.bin").write_bytes(table.tobytes())
    embeddings = Embeddings(tmp_path, EmbeddingTable("embed.bin", dtype, (20, 6)))
    out = np.empty((3, 6), np.float32)
    embeddings.gather(np.array([19, 0, 19]), out)
    np.testing.assert_array_equal(out, table[[19, 0, 19]].astype(np.float32))
    assert embeddings.hidden_size == 6


def test_rows_can_be_written_into_a_part_of_a_batch(tmp_path):
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    (tmp_path / "embed.bin").write_bytes(table.tobytes())
    embeddings = Embeddings(tmp_path, EmbeddingTable("embed.bin", "float32", (4, 2)))
    out = np.zeros((2, 3, 2), np.float32)
    embeddings.gather(np.array([3, 1]), out[:, 0])
    assert out[:, 0].tolist() == [[6, 7], [2, 3]]
    assert not out[:, 1:].any()


@pytest.mark.parametrize("size", [0, 79, 81])
def test_a_table_of_another_size_is_a_bundle_error(tmp_path, size):
    (tmp_path / "embed.bin").write_bytes(bytes(size))
    with pytest.raises(BundleError, match=f"{size} bytes"):
        Embeddings(tmp_path, EmbeddingTable("embed.bin", "float16", (20, 2)))


def test_a_missing_table_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        Embeddings(tmp_path, EmbeddingTable("embed.bin", "float16", (20, 2)))


CODES = {"int8": np.int8, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}


@pytest.mark.parametrize("dtype", CODES)
def test_rows_with_a_scale_each_are_code_times_scale(tmp_path, dtype):
    """Scales behind the codes in one file, as an lm_head per output channel would have them."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (30, 6), np.uint8)
    codes[codes & 127 == 127] = 3  # float8's NaN
    scales = rng.uniform(1e-3, 2, 30).astype(np.float32)
    head = b"another tensor"
    (tmp_path / "decoder.data").write_bytes(head + codes.tobytes() + scales.tobytes())
    packing = RowScales("rows", "decoder.data", len(head) + codes.nbytes)
    table = EmbeddingTable("decoder.data", dtype, (30, 6), packing, len(head))
    ids, out = np.array([29, 0, 7, 29]), np.empty((4, 6), np.float32)
    Embeddings(tmp_path, table).gather(ids, out)
    expected = codes.view(CODES[dtype]).astype(np.float32) * scales[:, None]
    np.testing.assert_array_equal(out, expected[ids])


def test_all_256_floats_of_8_bits_are_those_of_ml_dtypes(tmp_path):
    (tmp_path / "codes").write_bytes(bytes(range(256)))
    (tmp_path / "scales").write_bytes(np.float32(1).tobytes())
    table = EmbeddingTable("codes", "float8_e4m3fn", (1, 256), RowScales("rows", "scales"))
    out = np.empty((1, 256), np.float32)
    Embeddings(tmp_path, table).gather(np.array([0]), out)
    expected = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(out[0], expected)
    assert np.signbit(out[0, 128])  # of the negative zero


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("hidden_size", "block_size"), [(64, 32), (70, 32), (6, 16), (128, 128)])
def test_rows_in_blocks_are_those_that_the_lm_head_multiplies_with(
    tmp_path, bits, hidden_size, block_size
):
    """The oracle is written out an element at a time from the operator's documentation."""
    rng = np.random.default_rng(bits)
    blocks = -(-hidden_size // block_size)
    codes = rng.integers(0, 256, (9, blocks, block_size * bits // 8), np.uint8)
    scales = rng.standard_normal((9, blocks)).astype(np.float32)
    (tmp_path / "decoder.data").write_bytes(bytes(64) + scales.tobytes() + codes.tobytes())
    packing = Blocks("blocks", bits, block_size, "decoder.data", 64)
    table = EmbeddingTable("decoder.data", "uint8", (9, hidden_size), packing, 64 + scales.nbytes)
    ids, out = np.array([8, 3, 3, 0]), np.empty((4, hidden_size), np.float32)
    Embeddings(tmp_path, table).gather(ids, out)
    for row, token in enumerate(ids):
        for k in range(hidden_size):
            block, place = divmod(k, block_size)
            if bits == 8:
                code = int(codes[token, block, place]) - 128
            else:
                code = (int(codes[token, block, place // 2]) >> 4 * (place % 2) & 15) - 8
            assert out[row, k] == np.float32(code) * scales[token, block]


def test_only_the_rows_asked_for_are_read(tmp_path):
    """A table far larger than memory, of zeros that take no disk."""
    shape = (2**28, 4096)  # 1 TiB
    with (tmp_path / "codes").open("wb") as file:
        file.truncate(shape[0] * shape[1])
        file.seek(5 * shape[1])
        file.write(b"\1")
    with (tmp_path / "scales").open("wb") as file:
        file.truncate(shape[0] * 4)
        file.seek(5 * 4)
        file.write(np.float32(0.5).tobytes())
    table = EmbeddingTable("codes", "int8", shape, RowScales("rows", "scales"))
    out = np.empty((2, shape[1]), np.float32)
    Embeddings(tmp_path, table).gather(np.array([5, 2**28 - 1]), out)
    assert out[0, 0] == 0.5
    assert out.sum() == 0.5


@pytest.mark.parametrize("cut", ["codes", "scales"])
def test_packed_tables_that_end_too_early_are_a_bundle_error(tmp_path, cut):
    sizes = {"codes": 20, "scales": 40} | {cut: 19}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(BundleError, match=f"{cut} has 19 bytes"):
        Embeddings(tmp_path, EmbeddingTable("codes", "int8", (10, 2), RowScales("rows", "scales")))


def test_a_table_that_is_the_lm_head_answers_as_its_own_float_copy_does(make_bundle, tmp_path):
    """Of a tied checkpoint in int8: no embedding.bin, the same rows and the same tokens."""
    shared = shutil.copytree(make_bundle("tiny", "int8").bundle, tmp_path / "shared")
    raw = json.loads((shared / MANIFEST_NAME).read_text())
    model = onnx.load(shared / "decoder.onnx", load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
    }
    head, scales = (places[f"lm_head.weight.{part}"] for part in ("packed", "scales"))
    rows, size = raw["embedding"]["shape"]
    (node,) = (n for n in model.graph.node if "lm_head.weight.packed" in n.input)
    block_size = next(a.i for a in node.attribute if a.name == "block_size")

    floats = shutil.copytree(shared, tmp_path / "floats")
    data = (shared / "decoder.onnx.data").read_bytes()
    blocks = -(-size // block_size)
    values = np.frombuffer(data, np.uint8, rows * blocks * block_size, int(head["offset"]))
    values = values.reshape(rows, blocks, block_size).astype(np.float32) - 128
    values *= np.frombuffer(data, np.float32, rows * blocks, int(scales["offset"])).reshape(
        rows, blocks, 1
    )
    table = np.ascontiguousarray(values.reshape(rows, -1)[:, :size])
    (floats / "embedding.bin").write_bytes(table.tobytes())
    write_embedding(floats, {"dtype": "float32"})

    (shared / "embedding.bin").unlink()
    packing = {
        "layout": "blocks",
        "bits": 8,
        "block_size": block_size,
        "scales_file": scales["location"],
        "scales_offset": int(scales["offset"]),
    }
    place = {"file": head["location"], "offset": int(head["offset"])}
    write_embedding(shared, place | {"dtype": "uint8", "packing": packing})

    options = GenerationOptions(max_new_tokens=8, ignore_eos=True)
    answers = []
    for bundle in (shared, floats):
        with Model.load(bundle, num_threads=1) as model:
            answers.append(model.answer("What is the total?", options=options).token_ids)
    assert answers[0] == answers[1]
    with_table = Embeddings(shared, read_manifest(shared).embedding)
    out = np.empty((rows, size), np.float32)
    with_table.gather(np.arange(rows), out)
    np.testing.assert_array_equal(out, table)


def write_embedding(bundle, changes):
    """Change the manifest's table, and its records to the files that are there."""
    raw = json.loads((bundle / MANIFEST_NAME).read_text())
    raw["embedding"] |= changes
    raw["files"] = {
        name: record | {"bytes": (bundle / name).stat().st_size}
        for name, record in raw["files"].items()
        if (bundle / name).is_file()
    }
    (bundle / MANIFEST_NAME).write_text(seal_manifest(raw))


def test_visual_rows_go_on_where_the_last_stretch_ended():
    visual = np.arange(1, 5, dtype=np.float32)[:, None]
    is_visual = np.array([False, True, True, False, True, True])
    out = np.zeros((6, 1), np.float32)
    placed = scatter_visual_rows(is_visual[:2], visual, 0, out[:2])
    placed = scatter_visual_rows(is_visual[2:], visual, placed, out[2:])
    assert placed == 4
    assert out[:, 0].tolist() == [0, 1, 2, 0, 3, 4]
