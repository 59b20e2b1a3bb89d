import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.runtime.backends.trt.device_cache import NewRows, make_device_cache, read_layout
from vlmedge.runtime.bundle.manifest import GraphSpec, TensorSpec
from vlmedge.runtime.errors import BackendError, BundleError


def make_graph(num_layers=2, num_kv_heads=2, head_dim=16, dtype="float32"):
    shape = ("batch", num_kv_heads, "capacity", head_dim)
    names = [f"past_key_values.{i}.{kind}" for i in range(num_layers) for kind in ("key", "value")]
    return GraphSpec("decoder.onnx", tuple(TensorSpec(name, dtype, shape) for name in names), ())


def read(driver, cache, num_kv_heads, head_dim):
    """float32[tensors, B, num_kv_heads, capacity, head_dim]."""
    shape = (cache.batch, num_kv_heads, cache.capacity, head_dim)
    num_bytes = 4 * int(np.prod(shape))
    views = [driver.view(tensor.address, num_bytes) for tensor in cache.buffers.values()]
    return np.stack([view.copy().view(np.float32).reshape(shape) for view in views])


def test_the_layout_is_read_off_the_manifest():
    layout = read_layout(make_graph(num_layers=3, num_kv_heads=4, head_dim=128, dtype="bfloat16"))
    assert len(layout.names) == 6
    assert (layout.num_kv_heads, layout.row_bytes) == (4, 256)
    assert layout.measure_tensor(2, 64) == 2 * 4 * 64 * 256


def test_keys_and_values_of_several_kinds_are_a_bundle_error():
    graph = make_graph()
    odd = dataclasses.replace(graph.inputs[0], dtype="float16")
    for inputs in ((odd, *graph.inputs[1:]), ()):
        with pytest.raises(BundleError, match="kinds, needed one"):
            read_layout(dataclasses.replace(graph, inputs=inputs))


def test_a_new_cache_is_zero_because_masked_values_are_multiplied_too(driver):
    stream = driver.make_stream()
    cache = make_device_cache(driver, stream, read_layout(make_graph()), 2, 64)
    driver.synchronize(stream)
    assert not read(driver, cache, 2, 16).any()
    assert cache.num_bytes == 4 * 2 * 2 * 64 * 16 * 4


def test_every_sequence_begins_where_tensorrt_takes_an_address(driver):
    with pytest.raises(BackendError, match=r"multiple of 256.*whole 64s"):
        make_device_cache(driver, 1, read_layout(make_graph(head_dim=8)), 1, 1)


@st.composite
def _cases(draw):
    batch = draw(st.integers(1, 3))
    num_tokens = draw(st.integers(1, 5))
    rows = draw(st.integers(1, batch))
    return SimpleNamespace(
        batch=batch,
        num_tokens=num_tokens,
        rows=rows,
        first_row=draw(st.integers(0, batch - rows)),
        num_layers=draw(st.integers(1, 3)),
        num_kv_heads=draw(st.integers(1, 3)),
        write_indices=np.array(
            [draw(st.integers(0, 64 - num_tokens)) for _ in range(rows)], np.int64
        ),
    )


@given(case=_cases())
@settings(max_examples=60, deadline=None)
def test_new_rows_come_behind_what_is_there_and_nowhere_else(fake_driver, case):
    driver = fake_driver.FakeDriver()
    stream = driver.make_stream()
    layout = read_layout(make_graph(case.num_layers, case.num_kv_heads))
    cache = make_device_cache(driver, stream, layout, case.batch, 64)
    rows = NewRows(driver, layout, case.rows, case.num_tokens)
    rng = np.random.default_rng(0)
    shape = (len(layout.names), case.rows, case.num_kv_heads, case.num_tokens, 16)
    values = rng.normal(size=shape).astype(np.float32)
    for value, address in zip(values, rows.addresses.values(), strict=True):
        assert address % 256 == 0
        driver.copy_to_device(address, value, stream)
    rows.append(cache, case.first_row, case.write_indices, stream)
    driver.synchronize(stream)
    needed = np.zeros((len(layout.names), case.batch, case.num_kv_heads, 64, 16), np.float32)
    for row, start in enumerate(case.write_indices):
        needed[:, case.first_row + row, :, start : start + case.num_tokens] = values[:, row]
    assert np.array_equal(read(driver, cache, case.num_kv_heads, 16), needed)


def test_one_token_takes_as_many_copies_as_there_are_heads_not_layers(driver):
    """28 layers of 2 heads: 2 calls a token, not 112."""
    stream = driver.make_stream()
    layout = read_layout(make_graph(num_layers=28))
    cache = make_device_cache(driver, stream, layout, 1, 64)
    NewRows(driver, layout, 1, 1).append(cache, 0, np.zeros(1, np.int64), stream)
    assert driver.calls.count("copy_rows") == 2


def test_present_names_follow_past_names(driver):
    rows = NewRows(driver, read_layout(make_graph(num_layers=1)), 1, 1)
    assert set(rows.addresses) == {"present.0.key", "present.0.value"}
