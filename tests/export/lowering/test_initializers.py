"""Weights on their way into a target's graph: which bytes are written, and which are refused."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto as T
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from vlmedge.export.graphs.data_file import DataFile
from vlmedge.export.lowering.emitter import Emitter
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.initializers import Initializers, locate_bundle, narrow_rows
from vlmedge.export.lowering.options import LoweringOptions

DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
HIDDEN = 6


@pytest.fixture
def make(tmp_path):
    """Arrays in a bundle's data file -> Initializers over them, and what they write."""

    class Made:
        def __init__(self, compute, **arrays):
            content, tensors = b"", []
            for name, array in arrays.items():
                raw = array.tobytes()
                if array.dtype == ml_dtypes.int4:
                    nibbles = array.astype(np.int8).reshape(-1).view(np.uint8) & 15
                    raw = (nibbles[::2] | nibbles[1::2] << 4).tobytes()
                tensor = onnx.TensorProto(name=name, dims=array.shape)
                tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                tensor.data_location = T.EXTERNAL
                places = {"location": "old.data", "offset": len(content), "length": len(raw)}
                for key, value in places.items():
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                content += raw
            (tmp_path / "old.data").write_bytes(content)
            model = onnx.ModelProto()
            model.graph.initializer.extend(tensors)
            self.emitter, self.data = Emitter(compute), DataFile("new.data")
            located = locate_bundle(tmp_path, model)
            self.weights = Initializers(self.emitter, model, located, self.data)

        def write(self):
            (tmp_path / "new.data").unlink(missing_ok=True)
            self.data.write(tmp_path, lambda _: None)
            found = {}
            for name, tensor in self.emitter.initializers.items():
                copied = onnx.TensorProto()
                copied.CopyFrom(tensor)
                onnx.external_data_helper.load_external_data_for_tensor(copied, str(tmp_path))
                copied.data_location = T.DEFAULT
                found[name] = numpy_helper.to_array(copied)
            return found

    return Made


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_are_rounded_to_nearest(make, dtype):
    weight = draw((5, HIDDEN))
    made = make(dtype, w=weight)
    name = made.weights.floats("w", dtype)
    got = made.write()[name]
    needed = weight.astype(
        {"float32": np.float32, "float16": np.float16}.get(dtype, DTYPES["bf16"])
    )
    assert got.dtype == needed.dtype
    assert got.tobytes() == needed.tobytes()


def test_one_weight_is_laid_out_once_in_each_type(make):
    made = make("float16", w=draw((5, HIDDEN)))
    assert made.weights.floats("w", "float16") == made.weights.floats("w", "float16")
    assert made.weights.floats("w", "float32") == "w"
    assert set(made.write()) == {"w", "w.float16"}
    assert made.data.nbytes < 64 + 5 * HIDDEN * 6


@pytest.mark.parametrize(
    "array",
    [
        np.arange(-6, 6, dtype=np.int8).reshape(2, 6),
        np.arange(-8, 8, dtype=np.int8).reshape(2, 8).astype(ml_dtypes.int4),
        draw((3, 4)).astype(ml_dtypes.float8_e4m3fn),
    ],
    ids=lambda array: array.dtype.name,
)
def test_codes_pass_through_bit_for_bit(make, array):
    made = make("bfloat16", codes=array)
    assert made.weights.type("codes") == array.dtype.name
    assert made.weights.shape("codes") == array.shape
    got = made.weights.codes("codes")
    read = made.write()[got]
    assert read.dtype == array.dtype
    assert read.astype(np.float32).tolist() == array.astype(np.float32).tolist()


@pytest.mark.parametrize("start", [0, 2])
def test_rows_are_read_as_they_are_stored(make, start):
    weight = draw((5, HIDDEN))
    made = make("float32", w=weight, v=draw(7))
    assert made.weights.read_rows("w", start, 4).tolist() == weight[start:4].tolist()
    assert made.weights.read("w").tolist() == weight.tolist()
    assert made.weights.read("v").reshape(-1).tolist() == draw(7).tolist()


@settings(deadline=None, max_examples=60)
@given(
    rows=hnp.arrays(np.float32, (2, 3), elements=st.floats(0, 2.0**-10, width=32)),
    dtype=st.sampled_from(("float16", "bfloat16")),
)
def test_scales_stay_positive_where_weights_may_become_zero(rows, dtype):
    weights, scales = narrow_rows(rows, dtype), narrow_rows(rows, dtype, positive=True)
    assert (scales > 0).all()
    nonzero = weights > 0
    assert (scales[nonzero] == weights[nonzero]).all()


def test_a_negative_scale_keeps_its_sign():
    # Of activations there is none; of a source's blocks they are turned before this.
    rows = np.array([[-0.5, 0.25]], np.float32)
    assert narrow_rows(rows, "float16", positive=True).tolist() == rows.tolist()


@pytest.mark.parametrize("value", [70000.0, -70000.0])
def test_a_weight_over_float16s_range_is_named_with_what_to_do(make, value):
    weight = draw((5, HIDDEN))
    weight[3, 2] = value
    made = make("float16", **{"model.layers.0.mlp.down_proj.weight": weight})
    made.weights.floats("model.layers.0.mlp.down_proj.weight", "float16")
    with pytest.raises(ValueError, match="70000 is no float16: use --dtype bf16") as error:
        made.write()
    assert "model.layers.0.mlp.down_proj.weight in " in str(error.value)


def find(bundle, graph):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(bundle / graph).graph.initializer}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoint_of_bfloat16_gives_its_bits_or_their_rounding(make_bundle, tmp_path, dtype):
    source = make_bundle("tiny").checkpoint
    export_for_target(source, tmp_path / "out", LoweringOptions("jetpack-6.2", dtype))
    tensors = {}
    for path in source.glob("*.safetensors"):
        tensors |= load_file(path)
    written = find(tmp_path / "out", "decoder.onnx")
    found = 0
    for name, tensor in tensors.items():
        for stored in (name, f"{name}.float16", f"{name}.bfloat16"):
            if stored in written and name.startswith("model.layers"):
                found += 1
                kind = np.float32 if "norm" in name else DTYPES[dtype]
                needed = tensor.astype(np.float32).astype(kind)
                assert written[stored].dtype == kind
                assert written[stored].tobytes() == needed.tobytes(), name
    assert found >= 8  # o_proj, down_proj and two norms of each layer; others are joined
    joined = [written[n] for n in written if n.startswith("model.layers.0.self_attn.q_proj+")]
    parts = [tensors[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    needed = np.concatenate(parts).astype(np.float32).astype(DTYPES[dtype])
    assert needed.tobytes() in {array.tobytes() for array in joined}


def test_bits_that_no_rounding_would_give_pass_through(make_bundle, tmp_path):
    # Subnormals and negative zeros: a cast to float32 and back may lose either.
    source = make_bundle("tiny").checkpoint
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    name = "model.layers.0.mlp.down_proj.weight"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            bits = tensors[name].view(np.uint16).copy()
            bits[0, :4] = 0x8000, 0x0001, 0x8001, 0x007F
            tensors[name] = bits.view(ml_dtypes.bfloat16)
            save_file(tensors, path)
            needed = bits
    export_for_target(folder, tmp_path / "out", LoweringOptions("jetpack-6.2", "bf16"))
    written = find(tmp_path / "out", "decoder.onnx")
    (stored,) = (n for n in written if n.startswith(name))
    assert written[stored].view(np.uint16).tolist() == needed.tolist()


def test_a_nan_is_named_and_nothing_is_written(make_bundle, tmp_path):
    source = make_bundle("tiny").checkpoint
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    name = "model.layers.1.self_attn.o_proj.weight"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name] = tensors[name].copy()
            tensors[name][3, 1] = np.nan
            save_file(tensors, path)
    for dtype in DTYPES:
        with pytest.raises(ValueError, match="NaN or infinite") as error:
            export_for_target(folder, tmp_path / "out", LoweringOptions("jetpack-6.2", dtype))
        assert name in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
