"""Calls in processes: what they return, how they die, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vlmedge.quant.sweep.process_pool import ProcessPool, call_function, describe_exit
from vlmedge.quant.sweep.units import Outcome, Unit, run_units

WORK = """
import os, signal, sys, time
from pathlib import Path

def square(number):
    print("squaring", number)
    os.write(1, b"raw output\\n")
    return number ** 2

def refuse(number):
    raise ValueError(f"{number} is\\n too many")

def break_down():
    return {}["missing"]

def fill(size):
    return "x" * size

def threads():
    return os.environ.get("OMP_NUM_THREADS")

def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)

def leave(code):
    sys.exit(code)

def run_out():
    raise MemoryError("none left")

def never_json():
    return {1, 2}

def wait_first(pid_file, marker):
    '''Slow until it is killed; at the next try it returns.'''
    if Path(marker).exists():
        return "done"
    Path(marker).touch()
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that workers can import: its name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "sweep_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    return "sweep_work"


@pytest.fixture
def pool(work, tmp_path):
    pool = ProcessPool(2, tmp_path / "logs", num_threads=3)
    yield pool
    pool.close()


def wait_for(path, seconds=30):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
    return path.read_text()


def is_running(pid):
    """Whether a process does anything; one that nobody has waited for doesn't."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_values_errors_and_prints_are_kept_apart(pool, tmp_path):
    pool.start("a/b", "sweep_work:square", {"number": 7})
    pool.start("c", "sweep_work:refuse", {"number": 3})
    outcomes = {outcome.key: outcome for outcome in (pool.wait(), pool.wait())}
    assert outcomes["a/b"] == Outcome("a/b", value=49)
    assert outcomes["c"] == Outcome("c", error="3 is too many")
    log = (tmp_path / "logs" / "a" / "b.log").read_text()
    assert "squaring 7" in log
    assert "raw output" in log
    assert "Traceback" in (tmp_path / "logs" / "c.log").read_text()


def test_deaths_are_told_from_answers(pool):
    pool.start("killed", "sweep_work:kill_itself", {})
    pool.start("left", "sweep_work:leave", {"code": 3})
    outcomes = {outcome.key: outcome for outcome in (pool.wait(), pool.wait())}
    assert "ended by signal SIGKILL" in outcomes["killed"].death
    assert "killed.log" in outcomes["killed"].death
    assert "ended with exit code 3" in outcomes["left"].death


def test_large_answers_arrive_whole_and_libraries_are_told_their_threads(pool):
    pool.start("large", "sweep_work:fill", {"size": 3_000_000})
    pool.start("threads", "sweep_work:threads", {})
    outcomes = {outcome.key: outcome for outcome in (pool.wait(), pool.wait())}
    assert outcomes["large"].value == "x" * 3_000_000
    assert outcomes["threads"].value == "3"


def test_a_sweep_with_a_killed_worker_is_complete_and_the_same(pool, tmp_path):
    """One of two workers is killed half-way."""
    pid_file = tmp_path / "pid"
    victim = Unit(
        "victim",
        "sweep_work:wait_first",
        {"pid_file": str(pid_file), "marker": str(tmp_path / "marker")},
    )
    units = [victim, *(Unit(f"u{i}", "sweep_work:square", {"number": i}) for i in range(2))]
    events = []

    def kill_when_it_waits(event):
        events.append(event)
        if event.kind == "done" and event.key == "u0":
            os.kill(int(wait_for(pid_file)), signal.SIGKILL)

    found = run_units(units, tmp_path / "out", pool, on_event=kill_when_it_waits)
    assert not found.failed
    assert [result.value for result in found.done.values()] == ["done", 0, 1]
    assert [event.key for event in events if event.kind == "died"] == ["victim"]


DRIVER = """
import sys
from pathlib import Path
from vlmedge.quant.sweep.process_pool import ProcessPool
from vlmedge.quant.sweep.units import Unit, run_units
out = Path(sys.argv[1])
units = [
    Unit("first", "sweep_work:square", {"number": 6}),
    Unit("slow", "sweep_work:wait_first",
         {"pid_file": str(out / "pid"), "marker": str(out / "marker")}, ("first",)),
]
found = run_units(units, out, ProcessPool(1, out / "logs"))
print([(result.value, result.is_kept) for result in found.done.values()])
"""


def test_a_killed_sweep_leaves_no_worker_and_goes_on_where_it_was(work, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(out)])
    worker = int(wait_for(out / "pid"))
    assert is_running(worker)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 10
    while is_running(worker):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.01)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(out)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[(36, True), ('done', False)]\n"


def test_closing_ends_what_is_under_way(work, tmp_path):
    pool = ProcessPool(1, tmp_path / "logs")
    pid_file = tmp_path / "pid"
    kwargs = {"pid_file": str(pid_file), "marker": str(tmp_path / "marker")}
    pool.start("slow", "sweep_work:wait_first", kwargs)
    worker = int(wait_for(pid_file))
    pool.close()
    assert not is_running(worker)


def test_a_pool_without_workers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_workers is 0"):
        ProcessPool(0, tmp_path)


@pytest.mark.parametrize(
    ("function", "kwargs", "answer"),
    [
        ("square", {"number": 3}, {"value": 9}),
        ("break_down", {}, {"error": "KeyError: 'missing'"}),
        ("never_json", {}, {"error": "TypeError: Object of type set is not JSON serializable"}),
        (
            "no_such",
            {},
            {"error": "AttributeError: module 'sweep_work' has no attribute 'no_such'"},
        ),
    ],
)
def test_an_answer_is_a_value_or_one_line(work, function, kwargs, answer):
    assert call_function(f"{work}:{function}", kwargs) == answer


def test_a_want_of_memory_is_no_answer(work):
    """The same call may pass where less runs beside it."""
    with pytest.raises(MemoryError):
        call_function(f"{work}:run_out", {})


def test_exit_codes_have_names():
    assert describe_exit(-signal.SIGSEGV) == "the worker was ended by signal SIGSEGV"
    assert describe_exit(-200) == "the worker was ended by signal 200"
    assert describe_exit(1) == "the worker ended with exit code 1"
