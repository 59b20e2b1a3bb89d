"""The command line: options, what is kept of earlier calls, the report."""

import json
import time

import pytest
from gpu_check.command import (
    WITHOUT_PACK,
    check_pack,
    choose_wanted,
    main,
    parse_args,
    settle_work,
)
from gpu_check.config import read_config
from gpu_check.pack import write_pack
from gpu_check.plan import list_steps
from gpu_check.precisions import PRECISIONS
from gpu_check.record import StepRecord, read_record, write_record


def test_without_options_everything_is_checked_at_2b_within_a_call():
    call = parse_args([])
    assert (call.config.size, call.config.sides) == ("2b", (448, 1092))
    assert call.config.precisions == tuple(PRECISIONS)
    assert call.minutes < 10
    assert not call.config.dry_run


def test_a_dry_run_is_tiny():
    config = parse_args(["--dry-run"]).config
    assert (config.dry_run, config.size, config.sides) == (True, "tiny", (112,))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "nan"], "--minutes"),
        (["--precisions", "bf16"], "compared with fp16"),
        (["--precisions", "fp4"], "invalid choice"),
        (["--sides", "450"], "multiples of 28"),
        (["--sides", "28"], "multiples of 28"),
        (["--prompt-tokens", "0"], "--prompt-tokens"),
        (["--prompt-tokens", "64"], "needed 65 or more"),
        (["--context", "512"], "needed 64 more"),
        (["--num-runs", "0"], "--num-runs"),
        (["--unknown"], "unrecognized"),
    ],
)
def test_a_wrong_option_ends_with_2_and_its_name(options, reason, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(options)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err


def make_call(tmp_path, *options):
    return parse_args(["--dry-run", "--work", str(tmp_path / "w"), *options])


def test_steps_read_back_what_the_command_was_told(tmp_path):
    call = make_call(tmp_path, "--sides", "56", "112")
    settle_work(call)
    assert read_config(call.config.work) == call.config


def test_results_of_other_settings_are_not_mixed(tmp_path):
    settle_work(make_call(tmp_path))
    settle_work(make_call(tmp_path, "--pack", "elsewhere"))
    with pytest.raises(ValueError, match="--fresh"):
        settle_work(make_call(tmp_path, "--num-runs", "3"))
    settle_work(make_call(tmp_path, "--num-runs", "3", "--fresh"))


def test_what_failed_runs_again_only_when_told(tmp_path):
    call = make_call(tmp_path)
    settle_work(call)
    steps = list_steps(call.config)
    for name, status in (("machine", "ok"), ("sample.float", "failed"), ("checkpoint", "timeout")):
        write_record(call.config.work, StepRecord(name, status, 1.0, "why"))
    write_record(call.config.work, StepRecord("probe", "blocked", 1.0, "why"))

    def names(*options):
        return {step.name for step in choose_wanted(make_call(tmp_path, *options), steps)}

    assert not names() & {"machine", "sample.float", "checkpoint"}
    assert "probe" in names()
    assert {"sample.float", "checkpoint"} <= names("--retry")
    assert "machine" not in names("--retry")
    assert "machine" in names("--again", "machine")


def test_a_step_that_is_not_there_ends_with_2(tmp_path, capsys):
    assert main(["--dry-run", "--work", str(tmp_path / "w"), "--steps", "nothing"]) == 2
    assert "there is no step 'nothing'" in capsys.readouterr().err


def test_a_call_goes_on_where_the_last_one_ended_and_reports_both(tmp_path, capsys):
    work, out = tmp_path / "w", tmp_path / "out"
    options = ["--dry-run", "--work", str(work), "--pack", str(tmp_path), "--precisions", "fp16"]
    # Not all steps have run, so neither call is a success.
    assert main([*options, "--steps", "machine"]) == 1
    first = read_record(work, "machine")
    assert first.status == "ok"
    start = time.monotonic()
    assert main([*options, "--steps", "machine", "checkpoint", "torch", "--out", str(out)]) == 1
    assert time.monotonic() - start < 60
    assert read_record(work, "machine") == first
    content = json.loads((out / "gpu-check.json").read_text(encoding="utf-8"))
    assert content["steps"]["checkpoint"]["status"] == "ok"
    assert content["steps"]["torch"]["status"] == "skipped"
    assert "sample.fp16.bundle" in content["not_run"]
    text = (out / "gpu-check.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "a dry run" in text
    assert "sample.fp16.bundle | not run" in text


def test_a_pack_that_is_not_whole_is_told_before_anything_runs(tmp_path, capsys):
    pack, work = tmp_path / "pack", tmp_path / "w"
    content = tmp_path / "content"
    content.mkdir()
    (content / "a").write_bytes(bytes(range(256)))
    made = write_pack(
        content, pack, python="2.7", packages={}, part_bytes=64, preset=0, dictionary_bytes=1 << 16
    )
    options = ["--dry-run", "--work", str(work), "--pack", str(pack)]
    lost = made.parts[1].file
    data = (pack / lost).read_bytes()
    (pack / lost).unlink()
    assert main(options) == 2
    assert f"lacks {lost}" in capsys.readouterr().err
    assert not work.exists()
    check_pack(parse_args([*options, "--steps", *WITHOUT_PACK]))
    (pack / lost).write_bytes(data)
    check_pack(parse_args(options))


def test_the_steps_that_need_no_pack_need_no_other_step():
    steps = {step.name: step for step in list_steps(parse_args([]).config)}
    for name in WITHOUT_PACK:
        assert set(steps[name].needs) <= set(WITHOUT_PACK)


def test_the_list_of_steps_runs_none(tmp_path, capsys):
    work = tmp_path / "w"
    assert main(["--dry-run", "--work", str(work), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list_steps(read_config(work)))
    assert all(line.endswith("not run") for line in lines)
