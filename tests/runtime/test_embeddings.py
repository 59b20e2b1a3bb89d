import ml_dtypes
import numpy as np
import pytest

from vlmedge.runtime.embedding_table import EmbeddingTable
from vlmedge.runtime.embeddings import Embeddings, scatter_visual_rows
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


def test_visual_rows_go_on_where_the_last_stretch_ended():
    visual = np.arange(1, 5, dtype=np.float32)[:, None]
    is_visual = np.array([False, True, True, False, True, True])
    out = np.zeros((6, 1), np.float32)
    placed = scatter_visual_rows(is_visual[:2], visual, 0, out[:2])
    placed = scatter_visual_rows(is_visual[2:], visual, placed, out[2:])
    assert placed == 4
    assert out[:, 0].tolist() == [0, 1, 2, 0, 3, 4]
