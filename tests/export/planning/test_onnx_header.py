"""Headers of ONNX files: as the onnx package reads them, and no crash on anything else."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.planning import onnx_header
from vlmedge.export.planning.onnx_header import Initializer, read_initializers
from vlmedge.runtime.errors import BundleError


@pytest.fixture(scope="module")
def read_bytes(tmp_path_factory):
    """Bytes -> what the reader makes of them."""
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"

    def read(data):
        path.write_bytes(data)
        return read_initializers(path)

    return read


def make_model(*tensors):
    graph = onnx.helper.make_graph([], "g", [], [], list(tensors))
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int4"])
def test_it_reads_what_the_onnx_package_reads(make_bundle, weights):
    bundle = make_bundle("tiny", weights).bundle
    for graph in ("vision", "vision_video", "decoder"):
        path = bundle / f"{graph}.onnx"
        loaded = onnx.load(path, load_external_data=False).graph.initializer
        found = read_initializers(path)
        assert [(t.name, t.shape) for t in found] == [(t.name, tuple(t.dims)) for t in loaded]
        for tensor, wanted in zip(found, loaded, strict=True):
            entries = {entry.key: entry.value for entry in wanted.external_data}
            assert tensor.file == entries.get("location")
            inside = onnx.numpy_helper.to_array(wanted).nbytes if not entries else None
            assert tensor.nbytes == (inside if inside is not None else int(entries["length"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int8, np.bool_])
def test_tensors_inside_have_their_bytes(read_bytes, dtype):
    array = np.zeros((3, 5), dtype)
    found = read_bytes(make_model(onnx.numpy_helper.from_array(array, "x")))
    assert found == [Initializer("x", (3, 5), array.nbytes, None)]


def test_int4_takes_half_a_byte_and_an_odd_one_a_whole(read_bytes):
    tensor = onnx.TensorProto(name="x", data_type=onnx.TensorProto.INT4, dims=[3, 5])
    assert read_bytes(make_model(tensor)) == [Initializer("x", (3, 5), 8, None)]


def test_a_length_that_does_not_fit_the_shape_is_refused(read_bytes):
    tensor = onnx.TensorProto(name="x", data_type=onnx.TensorProto.FLOAT, dims=[4])
    for key, value in (("location", "f"), ("length", "17")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(BundleError, match="has 17 bytes, needed 16"):
        read_bytes(make_model(tensor))


def test_an_unknown_type_is_refused(read_bytes):
    with pytest.raises(BundleError, match="unknown type 99"):
        read_bytes(make_model(onnx.TensorProto(name="x", data_type=99, dims=[1])))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"gone\.onnx is not readable"):
        read_initializers(tmp_path / "gone.onnx")


def test_a_graph_with_its_weights_inside_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_header, "MAX_GRAPH_BYTES", 10)
    (tmp_path / "g.onnx").write_bytes(bytes(11))
    with pytest.raises(BundleError, match="weights lie inside"):
        read_initializers(tmp_path / "g.onnx")


@given(data=st.binary(max_size=200))
def test_no_bytes_crash_it(read_bytes, data):
    try:
        found = read_bytes(data)
    except BundleError:
        return
    assert all(tensor.nbytes >= 0 for tensor in found)


@given(data=st.data())
def test_no_damage_to_a_real_graph_crashes_it(read_bytes, data):
    external = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 3])
    for key, value in (("location", "f.data"), ("offset", "0"), ("length", "24")):
        entry = external.external_data.add()
        entry.key, entry.value = key, value
    whole = make_model(external, onnx.numpy_helper.from_array(np.arange(4), "x"))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_bytes(bytes(damaged))
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017 - any of several may be raised
