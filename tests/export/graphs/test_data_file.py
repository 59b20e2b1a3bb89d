"""The layout that graphs refer to is what is written, and its hash is the file's."""

import hashlib
import threading

import numpy as np
import pytest

from vlmedge.export.checkpoint.weights.tensor_source import TensorSource
from vlmedge.export.graphs import weights
from vlmedge.export.graphs.data_file import DataFile
from vlmedge.export.graphs.weights import float_weight, packed_weight
from vlmedge.quant.files import hashed_file
from vlmedge.quant.files.hashed_file import ALIGNMENT, PAGE_ALIGNMENT, HashedFile


def write_source(path, array):
    path.write_bytes(array.astype(np.float32).tobytes())
    return TensorSource(path.name, "F32", array.shape, path, 0, array.nbytes)


@pytest.fixture
def sources(tmp_path):
    random = np.random.default_rng(0)
    shapes = {"a": (300, 70), "b": (5,), "c": (64, 64), "d": (1, 1)}
    return {
        name: write_source(tmp_path / name, random.standard_normal(shape).astype(np.float32))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("block_elements", [50, 1 << 18])
def test_tensors_lie_where_the_graph_will_look_for_them(
    sources, tmp_path, monkeypatch, block_elements
):
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", block_elements)
    monkeypatch.setattr(hashed_file, "FLUSH_BYTES", 4096)
    data = DataFile("x.data")
    tensors = [
        *data.add(float_weight("b", (sources["b"],), "fp32")),
        *data.add(packed_weight("a", (sources["a"],), "int4", 32)),
        *data.add(float_weight("d", (sources["d"],), "fp16")),
        *data.add(packed_weight("c", (sources["c"], sources["c"]), "int8", 16)),
    ]
    read: list[int] = []
    record = data.write(tmp_path, read.append)
    content = (tmp_path / "x.data").read_bytes()
    assert record.bytes == len(content) == data.nbytes
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert sum(read) == data.source_nbytes()
    end = 0
    for tensor in tensors:
        alignment = PAGE_ALIGNMENT if tensor.nbytes >= PAGE_ALIGNMENT else ALIGNMENT
        assert tensor.offset % alignment == 0
        assert tensor.offset >= end
        assert not any(content[end : tensor.offset])
        end = tensor.offset + tensor.length
        tensor.base_dir = str(tmp_path)
    assert end == len(content)
    b = np.fromfile(sources["b"].path, np.float32)
    np.testing.assert_array_equal(tensors[0].numpy(), b)
    whole = np.fromfile(sources["c"].path, np.float32).reshape(64, 64)
    packed, scales = weights.pack_rows(np.concatenate([whole, whole]), 8, 16)
    np.testing.assert_array_equal(tensors[-2].numpy(), packed)
    np.testing.assert_array_equal(tensors[-1].numpy(), scales)


def test_a_weight_of_two_graphs_is_stored_once(sources):
    data = DataFile("x.data")
    first = data.add(float_weight("a", (sources["a"],), "fp32"))
    size = data.nbytes
    assert data.add(float_weight("a", (sources["a"],), "fp32")) == first
    assert data.nbytes == size


def test_an_error_names_its_tensor_and_leaves_no_thread_behind(sources, tmp_path):
    bad = np.fromfile(sources["c"].path, np.float32)
    bad[-1] = np.nan
    bad.tofile(sources["c"].path)
    data = DataFile("x.data")
    for name in "abc":
        data.add(float_weight(name, (sources[name],), "fp32"))
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"c in .*NaN"):
        data.write(tmp_path, lambda num_bytes: None)
    assert threading.active_count() == before


def test_a_failed_write_is_an_error_and_leaves_no_thread_behind(tmp_path):
    before = threading.active_count()

    def fail():
        with HashedFile(tmp_path / "x") as file:
            file.write(b"abc")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert threading.active_count() == before
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "x")
    assert threading.active_count() == before
