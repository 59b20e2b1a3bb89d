import os
import time
from pathlib import Path

import pytest
from gpu_check.plan import Step
from gpu_check.record import StepRecord, find_file, read_figures, read_record, write_record
from gpu_check.runner import check_needs, run_step, run_steps

FUNCTIONS = """
import os, signal, subprocess, sys, time
from gpu_check.record import SkippedError
def good(config, *args): return {"args": list(args), "size": config.size}
def bad(config): raise KeyError("what | is wrong")
def found(config): return {"failure": "off by 2", "error": 2}
def skipped(config): raise SkippedError("no torch here")
def crash(config): os.kill(os.getpid(), signal.SIGSEGV)
def leave(config): print("last words"); os._exit(3)
def hang(config):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (config.work / "child").write_text(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS, encoding="utf-8")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def step(function, **options):
    return Step(function, f"functions:{function}", **options)


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        ("bad", "failed", "KeyError"),
        ("found", "failed", "off by 2"),
        ("skipped", "skipped", "no torch here"),
        ("crash", "failed", "SIGSEGV"),
        ("leave", "failed", "exit code 3: last words"),
    ],
)
def test_whatever_a_step_does_leaves_a_record_with_its_reason(
    make_config, environment, function, status, reason
):
    record = run_step(make_config(), step(function), environment, 30)
    assert record.status == status
    assert reason in record.reason


def test_a_good_step_gets_the_configuration_and_its_arguments(make_config, environment):
    record = run_step(make_config(), step("good", args=("a", "b")), environment, 30)
    assert record == StepRecord(
        "good", "ok", record.seconds, "", {"args": ["a", "b"], "size": "tiny"}
    )


def test_what_a_failed_comparison_found_is_kept(make_config, environment):
    config = make_config()
    assert run_step(config, step("found"), environment, 30).figures == {"error": 2}


def test_a_step_that_hangs_ends_with_all_that_it_started(make_config, environment):
    config = make_config()
    start = time.monotonic()
    record = run_step(config, step("hang"), environment, 4)
    assert time.monotonic() - start < 20
    assert record.status == "timeout"
    child = int((config.work / "child").read_text())
    for _ in range(50):  # it is reaped by init, not by us
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child is alive")


def test_others_go_on_behind_a_failure_and_what_needs_it_is_blocked(make_config, environment):
    config, told = make_config(), []
    steps = [step("bad"), step("found", needs=("bad",)), step("good")]
    left = run_steps(config, steps, environment, time.monotonic() + 60, told.append)
    assert left == []
    statuses = [read_record(config.work, each.name).status for each in steps]
    assert statuses == ["failed", "blocked", "ok"]
    assert "bad is failed" in read_record(config.work, "found").reason
    assert any("KeyError" in line for line in told)


def test_without_time_nothing_is_started_and_nothing_is_recorded(make_config, environment):
    config = make_config()
    steps = [step("good"), step("bad", needs=("good",))]
    left = run_steps(config, steps, environment, time.monotonic() + 1, lambda _: None)
    assert left == ["good", "bad"]
    assert read_record(config.work, "good") is None
    assert read_record(config.work, "bad") is None


def test_a_step_cut_off_by_the_calls_end_may_run_again(make_config, environment):
    config = make_config()
    deadline = time.monotonic() + 6
    left = run_steps(config, [step("hang", budget_s=50)], environment, deadline, lambda _: None)
    assert left == ["hang"]
    assert read_record(config.work, "hang") is None


@pytest.mark.parametrize("status", ["failed", "timeout", "blocked"])
def test_a_step_is_blocked_by_one_that_is_not_ok(make_config, status):
    config = make_config()
    write_record(config.work, StepRecord("first", status, 1.0))
    record = check_needs(config, step("good", needs=("first",)))
    assert record.status == "blocked"
    assert "first" in record.reason


def test_what_needs_a_skipped_step_is_skipped_for_its_reason(make_config):
    config = make_config()
    write_record(config.work, StepRecord("first", "skipped", 0.0, "no torch"))
    record = check_needs(config, step("good", needs=("first",)))
    assert (record.status, record.reason) == ("skipped", "first was skipped: no torch")


def test_a_dry_run_skips_what_needs_a_gpu(make_config):
    gpu_step = step("good", needs_gpu=True)
    assert check_needs(make_config(), gpu_step).status == "skipped"
    assert check_needs(make_config(dry_run=False), gpu_step) is None


def test_a_damaged_record_counts_as_none(make_config):
    config = make_config()
    write_record(config.work, StepRecord("first", "ok", 1.0, "", {"a": 1}))
    assert read_figures(config.work, "first") == {"a": 1}
    for text in ("", "[]", '{"name": 1}', "{"):
        find_file(config.work, "first").write_text(text)
        assert read_record(config.work, "first") is None
        with pytest.raises(ValueError, match="first has no figures"):
            read_figures(config.work, "first")
