"""`vlmedge bench`: what it measures is there and of the right kind; how fast is not tested."""

import json
import math

import numpy as np
import pytest

from vlmedge.runtime import BundleError
from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.cli.bench import BenchPlan, measure
from vlmedge.runtime.cli.memory_probe import ProbeRequest, make_picture, probe
from vlmedge.runtime.errors import BackendError
from vlmedge.runtime.peak_memory import read_peak_bytes
from vlmedge.runtime.terminal.size_text import parse_size

PLAN = BenchPlan(image_sizes=((84, 56), (56, 56)), contexts=(90, 120), num_new_tokens=3, num_runs=2)


@pytest.fixture(scope="module")
def measured(tiny_bundle):
    """The plan's result and the steps that were told."""
    steps: list[str] = []
    return measure(tiny_bundle, PLAN, steps.append), steps


def test_every_figure_of_the_plan_is_measured(measured, tiny_bundle):
    result, _ = measured
    assert result.bundle == tiny_bundle.name
    assert [(figure.width, figure.height) for figure in result.vision] == [(84, 56), (56, 56)]
    assert [figure.num_tokens for figure in result.vision] == [6, 4]
    assert [figure.residency for figure in result.memory] == ["all", "one"]
    assert {(figure.width, figure.height) for figure in result.memory} == {(84, 56)}
    assert len(result.contexts) == 2
    spreads = [figure.vision_ms for figure in result.vision]
    spreads += [figure.preprocess_ms for figure in result.vision]
    spreads += [figure.prefill_tokens_per_s for figure in result.contexts]
    spreads += [figure.decode_tokens_per_s for figure in result.contexts]
    spreads += [figure.load_s for figure in result.memory]
    spreads += [figure.peak_bytes for figure in result.memory]
    for spread in spreads:
        assert 0 < spread.low <= spread.median <= spread.high < math.inf


def test_the_progress_bar_ends_where_it_was_told_to(measured):
    _, steps = measured
    assert len(steps) == PLAN.num_steps


def test_a_context_is_nearly_as_long_as_asked_and_never_longer(measured):
    result, _ = measured
    for figure, asked in zip(result.contexts, PLAN.contexts, strict=True):
        assert 0.9 * asked <= figure.num_prompt_tokens <= asked


def test_a_context_beyond_the_model_is_cut_to_its_limit(own_bundle):
    path = own_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decoder"]["max_position_embeddings"] = 100
    path.write_text(seal_manifest(manifest))
    plan = BenchPlan(image_sizes=((56, 56),), contexts=(10**9,), num_new_tokens=2, num_runs=1)
    (figure,) = measure(own_bundle, plan, lambda step: None).contexts
    assert 90 <= figure.num_prompt_tokens <= 98


def test_peak_memory_holds_at_least_the_weights_that_were_read(measured, tiny_bundle):
    result, _ = measured
    weights = (tiny_bundle / "decoder.onnx.data").stat().st_size
    assert all(figure.peak_bytes.low > weights for figure in result.memory)
    assert read_peak_bytes() > 1 << 20


def test_json_and_the_report_for_a_person(tiny_bundle, capsys):
    args = ["bench", str(tiny_bundle), "--runs", "1", "--image-size", "56x56", "--context", "40"]
    assert cli.main([*args, "--new-tokens", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["vision"][0]["num_tokens"] == 4
    assert result["providers"] == ["CPUExecutionProvider"]
    assert cli.main([*args, "--new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "56x56" in out
    assert "decode, tokens/s" in out


def test_a_picture_that_the_budget_shrinks_is_told_in_table_json_and_notice(
    own_bundle, edit_manifest, capsys
):
    """The oracle: what the model itself says of the same picture in its answer."""
    from vlmedge.runtime import GenerationOptions, Model

    def shrink(manifest):
        manifest["decoder"]["max_position_embeddings"] = 200
        manifest["pixels"]["max_pixels"] = 100 * 28 * 28

    edit_manifest(own_bundle, shrink)
    with Model.load(own_bundle) as model:
        large = math.isqrt(2 * model.manifest.pixels.max_pixels) + 1
        answer = model.answer(
            "?", [make_picture(large, large)], GenerationOptions(max_new_tokens=1)
        )
    (told,) = answer.notices
    seen = told.partition(" to ")[2].partition(" ")[0]
    args = ["bench", str(own_bundle), "--runs", "1", "--new-tokens", "2"]
    args += ["--image-size", f"{large}x{large}", "--context", "9999999"]
    assert cli.main([*args, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    (figure,) = result["vision"]
    assert f"{figure['seen_width']}x{figure['seen_height']}" == seen
    assert figure["num_tokens"] == answer.num_image_tokens
    assert f"vlmedge bench: {large}x{large} was shrunk to {seen}" in err
    assert "context 9999999 was measured at 198 tokens" in err
    assert len(result["notices"]) == 2
    assert cli.main(args) == 0
    out, err = capsys.readouterr()
    assert f"{large}x{large}" in out
    assert seen in out
    assert "was shrunk" in err


def test_a_picture_within_the_budget_gets_no_notice(measured):
    result, _ = measured
    assert result.notices == ()
    assert [(f.seen_width, f.seen_height) for f in result.vision] == [(84, 56), (56, 56)]


@pytest.mark.parametrize(
    "size", ["", "448", "0x28", "28x0", "448*448", "1e3x1", "-1x5", "448x448x3"]
)
def test_a_wrong_size_is_one_line(tiny_bundle, capsys, size):
    assert cli.main(["bench", str(tiny_bundle), "--image-size", size]) == 2
    err = capsys.readouterr().err
    assert "WIDTHxHEIGHT" in err
    assert err.count("\n") == 1


def test_sizes_are_width_first():
    assert parse_size("1920x1080") == (1920, 1080)
    assert make_picture(30, 20).shape == (20, 30, 3)
    assert np.array_equal(make_picture(30, 20), make_picture(30, 20))


def test_a_failed_process_is_told_of_with_its_reason(tmp_path):
    request = ProbeRequest(str(tmp_path / "none"), "all", 28, 28, 2, None, None)
    with pytest.raises(BackendError, match="no such directory"):
        probe(request)


def test_a_missing_bundle_is_an_error_before_anything_is_measured(tmp_path, capsys):
    assert cli.main(["bench", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(BundleError, match="no such directory"):
        measure(tmp_path / "none", PLAN, lambda step: None)
