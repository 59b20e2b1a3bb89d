"""Medians and shares, against numbers made by hand."""

import pytest
from gpu_check.figures import Ceilings, count_matrix_bytes, make_row, make_rows, read_ceilings
from gpu_check.work import count_cache_bytes, count_prefill_flops, count_vision_flops

from vlmedge.export.checkpoint.config import read_model_spec

TIMES = {
    "vision_ms": {"112": [9.0, 4.0, 5.0]},
    "prefill_ms": [2.0, 1.0, 30.0],
    "decode_ms": [0.5, 0.25, 0.5],
    "decoder_weight_bytes": 10**6,
}


@pytest.fixture(scope="module")
def spec(make_bundle):
    return read_model_spec(make_bundle("tiny").checkpoint)


def test_an_engine_at_the_ceiling_has_a_share_of_one(spec):
    flops = count_vision_flops(spec, 64)
    figures = {"vision_ms": {"112": [1000.0]}, "prefill_ms": [500.0], "decode_ms": [100.0]}
    token_bytes = 1000 + count_cache_bytes(spec, 24)
    rates = {"int8": flops, "fp8": 2 * count_prefill_flops(spec, 24)}
    ceilings = Ceilings(10 * token_bytes, rates)
    row = make_row("x", figures, spec, 24, ceilings, math=("int8", "fp8"), weight_bytes=1000)
    assert row.vision_share == {112: pytest.approx(1)}
    assert row.prefill_share == pytest.approx(1)
    assert row.decode_share == pytest.approx(1)


def test_medians_leave_out_what_strays(spec):
    row = make_row("x", TIMES, spec, 24, Ceilings(1e9, {"fp16": 1e12}), weight_bytes=10**6)
    assert (row.vision_ms, row.prefill_ms, row.decode_ms) == ({112: 5.0}, 2.0, 0.5)


def test_twice_the_time_is_half_the_share(spec):
    ceilings = Ceilings(1e9, {"fp16": 1e12})
    slow = {key: [2 * ms for ms in TIMES[key]] for key in ("prefill_ms", "decode_ms")}
    rows = [
        make_row("x", figures, spec, 24, ceilings, weight_bytes=10**6) for figures in (TIMES, slow)
    ]
    assert rows[0].decode_share == pytest.approx(2 * rows[1].decode_share)
    assert rows[0].prefill_share == pytest.approx(2 * rows[1].prefill_share)


def test_without_a_ceiling_there_is_no_share(spec):
    row = make_row("x", TIMES, spec, 24, read_ceilings(None), weight_bytes=10**6)
    assert (row.vision_share, row.prefill_share, row.decode_share) == ({}, None, None)
    assert make_row("x", TIMES, spec, 24, Ceilings(1e9, {}), weight_bytes=None).decode_share is None


def test_the_best_method_is_the_ceiling():
    figures = {"bytes_per_s": {"driver": 1.0, "torch": 3.0}, "flops_per_s": {"fp16": 2.0}}
    assert read_ceilings(figures) == Ceilings(3.0, {"fp16": 2.0})


def test_the_matrices_in_halves_are_what_a_checkpoint_has(spec, make_bundle):
    decoder = spec.decoder
    width = decoder.hidden_size
    heads, shared = decoder.num_heads, decoder.num_kv_heads
    layer = width * decoder.head_dim * (2 * heads + 2 * shared) + 3 * width * spec.decoder_mlp_size
    expected = 2 * (decoder.num_layers * layer + width * decoder.vocab_size)
    assert count_matrix_bytes(spec) == expected


def test_each_engine_is_measured_with_its_own_rate_and_bytes(spec):
    records = {
        "model.int8.times": TIMES,
        "model.fp16.times": TIMES | {"decoder_weight_bytes": 4 * 10**6},
        "torch": {"matrices_decode_ms": 0.1},
        "ceilings": {"bytes_per_s": {"a": 1e12}, "flops_per_s": {"int8": 2e12, "fp16": 1e12}},
    }
    rows = {row.name: row for row in make_rows(records, spec, 24)}
    assert list(rows) == ["vlmedge fp16", "vlmedge int8", "torch, matrices alone"]
    half, whole = rows["vlmedge int8"].vision_share[112], rows["vlmedge fp16"].vision_share[112]
    assert whole == pytest.approx(2 * half)
    assert rows["vlmedge fp16"].decode_share > 3 * rows["vlmedge int8"].decode_share
    assert rows["torch, matrices alone"].vision_ms == {}


def test_transformers_is_a_row_where_it_ran(spec):
    names = [row.name for row in make_rows({"torch": {"matrices_decode_ms": 1.0}}, spec, 24)]
    assert names == ["torch, matrices alone"]
    figures = {"matrices_decode_ms": 1.0} | TIMES
    names = [row.name for row in make_rows({"torch": figures}, spec, 24)]
    assert names == ["transformers fp16", "torch, matrices alone"]
