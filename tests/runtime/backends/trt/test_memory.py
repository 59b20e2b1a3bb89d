import gc

import numpy as np
import pytest

from vlmedge.runtime.backends.trt.memory import DeviceBlock, Scratch, Staging, align


@pytest.mark.parametrize(("given", "needed"), [(0, 0), (1, 256), (256, 256), (257, 512)])
def test_sizes_are_rounded_up_to_what_an_address_must_be(given, needed):
    assert align(given) == needed


def test_a_block_is_given_back_with_its_last_reference_and_only_once(driver):
    block = DeviceBlock(driver, 100)
    address = block.address
    assert list(driver.blocks) == [address]
    block.free()
    assert not driver.blocks
    del block
    gc.collect()
    block = DeviceBlock(driver, 100)
    del block
    gc.collect()
    assert not driver.blocks
    assert driver.calls.count("free") == 2


def test_scratch_grows_and_never_shrinks(driver):
    scratch = Scratch(driver, driver.make_stream())
    assert (scratch.address, scratch.num_bytes) == (0, 0)
    sizes, addresses = [], []
    for num_bytes in (0, 1000, 10, 5000, 5000):
        scratch.reserve(num_bytes)
        sizes.append(scratch.num_bytes)
        addresses.append(scratch.address)
    assert sizes == [0, 1024, 1024, 5120, 5120]
    assert addresses[1] == addresses[2]
    assert addresses[3] == addresses[4] != addresses[2]
    assert len(driver.blocks) == 1  # the smaller one is gone
    scratch.free()
    assert not driver.blocks


def test_scratch_waits_for_what_still_runs_before_it_moves(driver):
    stream = driver.make_stream()
    scratch = Scratch(driver, stream)
    scratch.reserve(256)
    seen = []
    address = scratch.address
    driver.put(stream, lambda: seen.append(address in driver.blocks))
    scratch.reserve(1000)
    assert seen == [True]


SPECS = [
    ("a", (3, 5), np.dtype(np.float32)),
    ("b", (), np.dtype(np.int64)),
    ("c", (7,), np.dtype(np.bool_)),
]


def test_staged_arrays_arrive_in_one_copy(driver):
    stream = driver.make_stream()
    staging = Staging(driver, SPECS)
    rng = np.random.default_rng(0)
    for name, shape, dtype in SPECS:
        assert not staging.arrays[name].any()
        staging.arrays[name][...] = rng.integers(0, 2, shape).astype(dtype)
    staging.upload(staging.measure("c", 7), stream)
    driver.synchronize(stream)
    assert driver.calls.count("copy_to_device") == 1
    for name, shape, dtype in SPECS:
        assert staging.addresses[name] % 256 == 0
        got = driver.view(staging.addresses[name], staging.arrays[name].nbytes)
        assert np.array_equal(got.view(dtype).reshape(shape), staging.arrays[name])


def test_a_copy_may_end_within_the_last_array(driver):
    stream = driver.make_stream()
    staging = Staging(driver, SPECS)
    staging.arrays["c"][...] = True
    staging.upload(staging.measure("c", 3), stream)
    driver.synchronize(stream)
    assert driver.view(staging.addresses["c"], 7).tolist() == [1, 1, 1, 255, 255, 255, 255]
