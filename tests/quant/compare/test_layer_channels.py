"""One wrong output channel among many is found, whatever its size and its format."""

import numpy as np
import pytest

from vlmedge.quant.compare.gauges import Gauge
from vlmedge.quant.compare.layer_channels import (
    ChannelSums,
    estimate_rounding,
    name_parts,
    split_parts,
)

ALL = {"": slice(0, 500)}


def make_rows(num_rows=64, num_channels=500, snr_db=20.0, seed=0):
    random = np.random.default_rng(seed)
    needed = random.standard_normal((num_rows, num_channels)).astype(np.float32)
    noise = random.standard_normal(needed.shape).astype(np.float32)
    return needed + noise * np.float32(10 ** (-snr_db / 20)), needed


def summarize(got, needed, parts=ALL, rounding=None):
    sums = ChannelSums(got.shape[1])
    sums.add(got, needed)
    return sums.sqnr_db, sums.summarize(parts, rounding)


def test_the_error_of_all_channels_is_that_of_the_array():
    got, needed = make_rows()
    total, found = summarize(got, needed)
    wanted = 20 * np.log10(np.linalg.norm(needed) / np.linalg.norm(got - needed))
    assert total == pytest.approx(wanted, abs=1e-4)
    assert found.parts == ()
    assert found.distance < 5


def test_two_swapped_channels_are_far_off_though_the_whole_hardly_changes():
    got, needed = make_rows(snr_db=40)
    got[:, [7, 300]] = got[:, [300, 7]]
    total, found = summarize(got, needed)
    assert total > 20
    assert found.worst in ("row 7", "row 300")
    assert found.worst_db == pytest.approx(-3, abs=2)
    assert found.distance > 20


def test_a_channel_that_hardly_speaks_does_not_cry_wolf():
    got, needed = make_rows()
    got[:, 9] -= needed[:, 9]
    needed[:, 9] = 0
    assert summarize(got, needed)[1].distance < 5


def test_equal_channels_have_no_worst_one():
    _, needed = make_rows()
    total, found = summarize(needed, needed)
    assert (total, found.worst, found.gap_db) == (200.0, "", 0.0)


def test_parts_have_errors_of_their_own_and_name_the_channel():
    got, needed = make_rows()
    needed[:, 400:] /= 100  # values far smaller than queries
    got[:, 400:] = needed[:, 400:] * 1.5
    got[:, 403] = 0
    parts = {"q_proj": slice(0, 400), "v_proj": slice(400, 500)}
    total, found = summarize(got, needed, parts)
    assert total > 19
    assert found.parts[0] > 19
    assert found.parts[1] == pytest.approx(6, abs=0.5)
    assert found.worst == "row 3 of v_proj"


def test_a_large_weight_explains_the_error_of_its_row():
    """4 bits in blocks of 128: one weight of 30 standard deviations takes all levels."""
    random = np.random.default_rng(0)
    needed = random.standard_normal((500, 128)).astype(np.float32)
    needed[11, 5] = 30
    steps = np.abs(needed).max(axis=1, keepdims=True) / 7
    got = np.rint(needed / steps) * steps
    power = np.ones(128)
    plain = Gauge(np.ones(128, np.float32), np.ones(500, np.float32))
    sums = ChannelSums(500)
    sums.add_matrix(got, needed, plain, power)
    parts = {"": slice(0, 500)}
    assert sums.summarize(parts, None).distance > 8
    rounding = estimate_rounding(needed, power, "int4 block 128")
    assert sums.summarize(parts, rounding).distance < 5
    got[[20, 21]] = got[[21, 20]]
    sums = ChannelSums(500)
    sums.add_matrix(got, needed, plain, power)
    found = sums.summarize(parts, rounding)
    assert found.worst in ("row 20", "row 21")
    assert found.distance > 10


def test_a_gauge_makes_matrices_comparable():
    random = np.random.default_rng(1)
    needed = random.standard_normal((6, 8)).astype(np.float32)
    gauge = Gauge(2.0 ** random.integers(-2, 3, 8), 2.0 ** random.integers(-2, 3, 6))
    got = (needed * gauge.input / gauge.output[:, None]).astype(np.float32)
    sums = ChannelSums(6)
    sums.add_matrix(got, needed, gauge, np.ones(8))
    assert sums.sqnr_db == 200.0


def test_formats_without_steps_have_no_rounding_to_estimate():
    matrix, power = np.ones((2, 4), np.float32), np.ones(4)
    for precision in ("float32", "float16", "float8_e4m3fn"):
        assert estimate_rounding(matrix, power, precision) is None
    for precision in ("int8 static", "int8 dynamic", "int8 block 128", "int4 block 2"):
        assert estimate_rounding(matrix, power, precision).tolist() == [4.0, 4.0]


def test_the_parts_of_joined_layers_are_their_rows(make_bundle):
    from vlmedge.runtime.bundle.manifest_file import read_manifest

    manifest = read_manifest(make_bundle("tiny").bundle)
    decoder = manifest.decoder
    cached = decoder.num_kv_heads * decoder.head_dim
    queries = decoder.num_heads * decoder.head_dim
    layer = "model.layers.0.self_attn.q_proj+k_proj+v_proj"
    parts = split_parts(layer, queries + 2 * cached, manifest)
    assert [part.stop - part.start for part in parts.values()] == [queries, cached, cached]
    assert list(parts) == ["q_proj", "k_proj", "v_proj"]
    parts = split_parts("visual.blocks.0.attn.qkv", 96, manifest)
    assert parts == {"q": slice(0, 32), "k": slice(32, 64), "v": slice(64, 96)}
    assert split_parts("lm_head", 320, manifest) == {"": slice(0, 320)}
    assert name_parts("model.layers.0.mlp.gate_proj+up_proj") == ("gate_proj", "up_proj")
