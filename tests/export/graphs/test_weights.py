"""Blocks of any size give what the whole tensor gives; values that can't be stored are named."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlmedge.export.checkpoint.weights.safetensors_header import read_header
from vlmedge.export.checkpoint.weights.tensor_source import TensorSource
from vlmedge.export.graphs import weights
from vlmedge.export.graphs.weights import copied_weight, float_weight, packed_weight, to_float32
from vlmedge.quant.rounding.weight_only import pack_rows

DTYPES = ["F32", "F16", "BF16"]
ALL_16_BIT = np.arange(1 << 16, dtype=np.uint16)


def write_source(path, array, dtype, name="t") -> TensorSource:
    """Store float32 values as the dtype: bfloat16 cuts them, which the tests' values survive."""
    if dtype == "BF16":
        raw = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)
    else:
        raw = array.astype(np.float16 if dtype == "F16" else np.float32)
    path.write_bytes(b"header" + raw.tobytes())
    return TensorSource(name, dtype, array.shape, path, 6, raw.nbytes)


def make_values(shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)  # exact in bfloat16


def encode_all(weight):
    """Every stored tensor, whole, as the data file would hold it."""
    parts = [block.encode() for block in weight.blocks()]
    return [
        np.concatenate([np.asarray(arrays[i]).reshape(-1) for arrays in parts])
        .view(np.uint8)
        .tobytes()
        for i in range(len(weight.stored))
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_elements", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("shapes", [[(5, 48)], [(3, 48), (1, 48), (2, 48)], [(37,)], [(4,), (9,)]])
def test_streaming_in_blocks_equals_the_whole_tensor(
    tmp_path, monkeypatch, dtype, block_elements, shapes
):
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", block_elements)
    arrays = [make_values(shape, seed) for seed, shape in enumerate(shapes)]
    sources = tuple(write_source(tmp_path / str(i), a, dtype) for i, a in enumerate(arrays))
    stored = [a.astype(np.float16).astype(np.float32) if dtype == "F16" else a for a in arrays]
    whole = np.concatenate(stored)
    assert encode_all(float_weight("w", sources, "fp32")) == [whole.tobytes()]
    assert encode_all(float_weight("w", sources, "fp16")) == [whole.astype(np.float16).tobytes()]
    if whole.ndim == 2:
        for format, bits in (("int8", 8), ("int4", 4)):
            expected = [array.tobytes() for array in pack_rows(whole, bits, 32)]
            weight = packed_weight("w", sources, format, 32)
            assert encode_all(weight) == expected
            assert weight.nbytes == sum(map(len, expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copied_tensor_keeps_its_bytes_and_type(tmp_path, dtype):
    source = write_source(tmp_path / "x", make_values((6, 10)), dtype)
    weight = copied_weight("table", source)
    assert encode_all(weight) == [source.path.read_bytes()[6:]]
    names = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}
    assert weight.stored[0].dtype.name == names[dtype]
    assert weight.stored[0].shape == (6, 10)


def test_every_bfloat16_and_float16_casts_to_float32_exactly():
    wide = (ALL_16_BIT.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(to_float32(ALL_16_BIT, "BF16"), wide)
    np.testing.assert_array_equal(
        to_float32(ALL_16_BIT, "F16"), ALL_16_BIT.view(np.float16).astype(np.float32)
    )


def test_every_bfloat16_in_range_rounds_to_float16_as_numpy_rounds(tmp_path):
    values = (ALL_16_BIT.astype(np.uint32) << 16).view(np.float32)
    values = values[np.abs(values) < 65504]  # NaN compares false
    source = write_source(tmp_path / "x", values, "BF16")
    expected = values.astype(np.float16).tobytes()
    assert encode_all(float_weight("w", (source,), "fp16")) == [expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", ["fp32", "fp16", "int8", "int4", "copy"])
def test_a_value_that_is_not_finite_is_named_with_its_tensor_and_file(tmp_path, dtype, bad, format):
    array = make_values((40, 32))
    array[39, 31] = bad
    source = write_source(tmp_path / "shard", array, dtype, "model.norm.weight")
    if format == "copy":
        weight = copied_weight("w", source)
    elif format in ("fp32", "fp16"):
        weight = float_weight("w", (source,), format)
    else:
        weight = packed_weight("w", (source,), format, 32)
    with pytest.raises(ValueError, match=r"model\.norm\.weight in .*shard: .*NaN or infinite"):
        encode_all(weight)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_value_beyond_float16_is_named(tmp_path, dtype):
    array = make_values((4, 32))
    array[2, 2] = -70144.0
    source = write_source(tmp_path / "shard", array, dtype, "model.norm.weight")
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*70144 is over float16's 65504"):
        encode_all(float_weight("w", (source,), "fp16"))


def test_a_file_cut_while_it_is_read_is_an_error(tmp_path):
    save_file({"a": np.zeros((64, 64), np.float32)}, tmp_path / "x.safetensors")
    source = read_header(tmp_path / "x.safetensors")["a"]
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="was truncated while it was read"):
        encode_all(float_weight("w", (source,), "fp32"))
