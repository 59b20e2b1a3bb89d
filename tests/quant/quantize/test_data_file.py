"""External data of graphs, read back by onnx itself."""

import hashlib
import itertools
import math

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vlmedge.quant.files.hashed_file import PAGE_ALIGNMENT
from vlmedge.quant.graph.files import locate
from vlmedge.quant.quantize.data_file import INLINE_BYTES, BundleData, pack_nibbles
from vlmedge.quant.quantize.rewrite import RewrittenGraph
from vlmedge.runtime import BundleError

GENERATOR = np.random.default_rng(0)
NEW = {
    "float32": GENERATOR.standard_normal((40, 30), np.float32),
    "int8": GENERATOR.integers(-128, 128, (40, 30), np.int8),
    "uint8": GENERATOR.integers(0, 256, (7, 5, 32), np.uint8),
    "int4": GENERATOR.integers(-8, 8, (13, 11)).astype(ml_dtypes.int4),  # an odd number of them
    "fp8": GENERATOR.standard_normal((40, 30)).astype(ml_dtypes.float8_e4m3fn),
    "page": np.arange(PAGE_ALIGNMENT, dtype=np.float32),
    "scalar": np.array(0.5, np.float32),
    "zero_point": np.zeros((), ml_dtypes.float8_e4m3fn),
}
OLD = GENERATOR.standard_normal((50, 20), np.float32)


@pytest.fixture
def source(tmp_path):
    """A float bundle's folder with one data file."""
    folder = tmp_path / "float"
    folder.mkdir()
    (folder / "weights.data").write_bytes(bytes(128) + OLD.tobytes() + b"behind")
    return folder


def make_graph(tensors, old=("old",)):
    """A graph that has `tensors` still to come and refers to the float bundle's file for `old`."""
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    for name in old:
        tensor = model.graph.initializer.add(name=name, data_type=1, dims=OLD.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights.data"), ("offset", 128), ("length", OLD.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
    return RewrittenGraph(model, tensors)


def read_back(model, folder):
    """Name -> array, by onnx."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.external_data_helper.load_external_data_for_model(copy, str(folder))
    return {t.name: onnx.numpy_helper.to_array(t) for t in copy.graph.initializer}


def write(data, folder):
    folder.mkdir(exist_ok=True)
    counts = []
    return data.write(folder, counts.append), sum(counts)


def test_every_tensor_reads_back_bit_for_bit(tmp_path, source):
    data = BundleData("new.data", source)
    model = data.attach(make_graph(NEW))
    record, num_bytes = write(data, tmp_path / "out")
    found = read_back(model, tmp_path / "out")
    assert set(found) == {"old", *NEW}
    np.testing.assert_array_equal(found["old"], OLD)
    for name, array in NEW.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    content = (tmp_path / "out" / "new.data").read_bytes()
    assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    stored = [locate(t)[2] for t in model.graph.initializer if t.external_data]
    assert num_bytes == sum(stored)


def test_scalars_stay_in_the_graph_and_matrices_leave_it(source):
    model = BundleData("new.data", source).attach(make_graph(NEW))
    inside = {t.name for t in model.graph.initializer if not t.external_data}
    assert inside == {name for name, array in NEW.items() if array.nbytes <= INLINE_BYTES}


def test_tensors_do_not_overlap_and_large_ones_begin_on_a_page(source):
    data = BundleData("new.data", source)
    model = data.attach(make_graph(NEW))
    places = sorted(locate(t)[1:] for t in model.graph.initializer if t.external_data)
    for (start, length), (following, _) in itertools.pairwise(places):
        assert start + length <= following
    assert data.nbytes == sum(places[-1])
    assert data.find("page") % PAGE_ALIGNMENT == 0


def test_graphs_of_one_model_share_what_has_one_name(tmp_path, source):
    data = BundleData("new.data", source)
    first = data.attach(make_graph(NEW))
    alone = data.nbytes
    second = data.attach(make_graph({"own": NEW["int8"] * 0, **NEW}))
    assert data.nbytes < alone + PAGE_ALIGNMENT + NEW["int8"].nbytes
    write(data, tmp_path / "out")
    one, other = (read_back(model, tmp_path / "out") for model in (first, second))
    for name, array in one.items():
        assert other[name].tobytes() == array.tobytes()


def test_the_same_graphs_give_the_same_bytes(tmp_path, source):
    files = []
    for folder in ("a", "b"):
        data = BundleData("new.data", source)
        model = data.attach(make_graph(NEW))
        write(data, tmp_path / folder)
        content = (tmp_path / folder / "new.data").read_bytes()
        files.append((content, model.SerializeToString(deterministic=True)))
    assert files[0] == files[1]


def test_a_float_bundle_that_ends_too_early_is_told(tmp_path, source):
    with (source / "weights.data").open("r+b") as file:
        file.truncate(128 + OLD.nbytes - 1)
    data = BundleData("new.data", source)
    data.attach(make_graph({}))
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match=r"weights\.data ends too early"):
        data.write(tmp_path / "out", lambda _: None)


@settings(deadline=None)
@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=2, max_side=9), elements=st.integers(-8, 7)))
def test_int4_is_packed_as_onnx_packs_it(levels):
    array = levels.astype(ml_dtypes.int4)
    packed = pack_nibbles(array)
    assert packed.tobytes() == onnx.numpy_helper.from_array(array, "t").raw_data
    assert len(packed) == math.ceil(levels.size / 2)


def test_of_two_int4_values_the_first_is_in_the_low_half():
    packed = pack_nibbles(np.array([1, -8, 7], ml_dtypes.int4))
    assert packed.tobytes() == b"\x81\x07"
