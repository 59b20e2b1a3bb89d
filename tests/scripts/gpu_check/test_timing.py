"""What is timed, on the CPU."""

import itertools

import pytest
from gpu_check import timing
from gpu_check.bundles import find_bundle
from gpu_check.observe import Side
from gpu_check.record import SkippedError, StepRecord, write_record
from gpu_check.timing import DECODE_STEPS, measure_onnxruntime, measure_side, time_runs


def test_every_figure_has_as_many_runs_as_were_asked_for(with_model):
    config = with_model
    figures = measure_side(config, Side(find_bundle(config, "model", "float"), "cpu"))
    assert {side: len(runs) for side, runs in figures["vision_ms"].items()} == {"56": 3, "112": 3}
    assert len(figures["prefill_ms"]) == 3
    assert len(figures["decode_ms"]) == DECODE_STEPS
    assert all(ms > 0 for ms in figures["decode_ms"])
    assert figures["decoder_weight_bytes"] > 0


def test_warming_up_is_not_counted(monkeypatch):
    clock = itertools.chain([0, 50, 50, 90, 90, 99], itertools.count(100, 0.5))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert time_runs(lambda: None, 2) == [500, 500]


def test_the_vit_gets_the_picture_in_the_size_that_is_named(with_model, monkeypatch):
    config, seen = with_model, []
    side = Side(find_bundle(config, "model", "float"), "cpu")
    encode = side.backend.encode_images

    def watch(graph, pixel_values, position_ids):
        seen.append((graph, pixel_values.shape[:2]))
        return encode(graph, pixel_values, position_ids)

    monkeypatch.setattr(side.backend, "encode_images", watch)
    timing.time_vision(side, 112, 1)
    assert set(seen) == {("vision", (1, (112 // 14) ** 2))}


def test_each_token_is_written_behind_the_one_before(with_model, monkeypatch):
    config, lengths = with_model, []
    side = Side(find_bundle(config, "model", "float"), "cpu")
    bind = side.backend.bind_decoder

    def watch(cache, num_tokens):
        call = bind(cache, num_tokens)
        run = call.run
        monkeypatch.setattr(
            call, "run", lambda: (lengths.append(int(call.seqlens_k[0])), run())[1], raising=False
        )
        return call

    monkeypatch.setattr(side.backend, "bind_decoder", watch)
    timing.time_decode(side, 24, 5)
    assert lengths == list(range(24, 24 + 5 + timing.NUM_WARMUPS))


def test_onnxruntime_without_cuda_is_skipped_with_what_it_has(make_config):
    config = make_config()
    figures = {"onnxruntime_providers": ["CPUExecutionProvider"]}
    write_record(config.work, StepRecord("machine", "ok", 1.0, "", figures))
    with pytest.raises(SkippedError, match="only CPUExecutionProvider"):
        measure_onnxruntime(config)
