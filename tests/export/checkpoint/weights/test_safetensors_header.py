"""Headers come from the internet: every damage must end in a ValueError that names the file."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vlmedge.export.checkpoint.weights.safetensors_header import MAX_HEADER_BYTES, read_header

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_header_agrees_with_the_library_that_wrote_it(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.float16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 5), np.float32),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert set(header) == set(tensors)
    content = path.read_bytes()
    for name, source in header.items():
        assert source.shape == tensors[name].shape
        assert content[source.offset : source.offset + source.nbytes] == tensors[name].tobytes()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1, 2]", "not an object"),
        (b'{"a": ' + b"[" * 5000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": 1, "a": 2}', "duplicate names in the header: a"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "'a' needs exactly dtype"),
        ({"a": ENTRY | {"more": 1}}, "'a' needs exactly dtype"),
        ({"a": 3}, "'a' needs exactly dtype"),
        ({"a": ENTRY | {"dtype": "F128"}}, "unknown dtype 'F128'"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, "unknown dtype"),
        ({"a": ENTRY | {"shape": [-2]}}, "malformed shape"),
        ({"a": ENTRY | {"shape": [2.0]}}, "malformed shape"),
        ({"a": ENTRY | {"shape": [True, 2]}}, "malformed shape"),
        ({"a": ENTRY | {"shape": [1] * 99}}, "malformed shape"),
        ({"a": ENTRY | {"shape": [2**70]}}, "malformed shape"),
        ({"a": ENTRY | {"shape": [2**40, 2**40]}}, "needs"),
        ({"a": ENTRY | {"data_offsets": [0, 8, 8]}}, "malformed data_offsets"),
        ({"a": ENTRY | {"data_offsets": [0, 16]}}, "truncated or damaged"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, "truncated or damaged"),
        ({"a": ENTRY | {"data_offsets": [0, 4]}}, "needs 8 bytes, it has 4"),
        ({"a": ENTRY, "b": ENTRY}, "overlaps"),
        ({"a": ENTRY | {"shape": [1], "data_offsets": [4, 8]}}, "unused"),
        ({"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}}, "belong to none"),
    ],
)
def test_damaged_header_is_refused_and_named(tmp_path, header, message):
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("length", [0, 10**6, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_absurd_header_length_is_refused_before_anything_is_read(tmp_path, length):
    path = write(tmp_path / "x.safetensors", {"a": ENTRY}, length=length)
    with pytest.raises(ValueError, match=r"truncated|not JSON"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20])
def test_cut_file_is_refused(tmp_path, size):
    path = write(tmp_path / "x.safetensors", {"a": ENTRY})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        read_header(path)


def test_missing_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="can't be read: No such file"):
        read_header(tmp_path / "none.safetensors")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "I64"]) | JSON_VALUES,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | JSON_VALUES,
    }
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
@given(st.dictionaries(st.text(max_size=4), ENTRIES | JSON_VALUES, max_size=4), st.integers(0, 64))
def test_any_json_is_read_within_the_file_or_refused(tmp_path, header, data_bytes):
    path = write(tmp_path / "x.safetensors", header, data=bytes(data_bytes))
    check_read_or_refused(path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
@given(st.data())
def test_any_flipped_bytes_are_read_within_the_file_or_refused(tmp_path, data):
    content = bytearray(write(tmp_path / "x", {"a": ENTRY}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    check_read_or_refused(path)


def check_read_or_refused(path):
    refusal, tensors = "", {}
    try:
        tensors = read_header(path)
    except ValueError as error:
        refusal = str(error)
    assert not refusal or str(path) in refusal
    size = path.stat().st_size
    for tensor in tensors.values():
        assert 8 <= tensor.offset <= tensor.offset + tensor.nbytes <= size
