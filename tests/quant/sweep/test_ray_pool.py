"""Calls on a Ray cluster: a local one of two workers, one of which is killed."""

import os
import signal
import socket
import threading
import time

import pytest

from vlmedge.quant.sweep.process_pool import ProcessPool
from vlmedge.quant.sweep.units import Outcome, Unit, run_units

ray = pytest.importorskip("ray", reason="ray is not installed (extra: ray)")

WORK = """
import os, sys, time
from pathlib import Path

def square(number):
    return number ** 2

def refuse(number):
    raise ValueError(f"{number} is too many")

def find_pid():
    return os.getpid()

def wait_first(number, pid_file, marker):
    '''Slow until it is killed; at the next try it returns.'''
    if not Path(marker).exists():
        Path(marker).touch()
        Path(pid_file).write_text(str(os.getpid()))
        time.sleep(60)
    return number ** 2
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A module that workers can import: PYTHONPATH is what Ray's own processes inherit."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "ray_work.py").write_text(WORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield "ray_work"


def start_ray():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        configure_logging=False,
    )


@pytest.fixture(scope="module")
def cluster(work):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            start_ray()
        except Exception:  # Ray's own: its processes get 30 s, a busy machine may need more
            ray.shutdown()
            start_ray()
        yield
        ray.shutdown()


@pytest.fixture
def pool(cluster):
    from vlmedge.quant.sweep.ray_pool import RayPool

    pool = RayPool("auto")
    yield pool
    pool.close()


def make_units(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    victim = Unit(
        "part/3",
        "ray_work:wait_first",
        {"number": 3, "pid_file": str(folder / "pid"), "marker": str(folder / "marker")},
    )
    rest = [Unit(f"part/{i}", "ray_work:square", {"number": i}) for i in range(3)]
    last = Unit("last", "ray_work:square", {"number": 9}, ("part/3", "part/0"))
    return [victim, *rest, last], folder


def test_a_sweep_with_a_killed_worker_gives_what_a_serial_one_gives(pool, tmp_path):
    """Two workers; the one that is half-way through a unit is killed."""
    units, folder = make_units(tmp_path, "ray")
    assert pool.num_workers == 2

    def kill():
        deadline = time.monotonic() + 40
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)

    events = []
    killer = threading.Thread(target=kill)
    killer.start()
    found = run_units(units, folder / "out", pool, on_event=events.append)
    killer.join()
    assert [event.key for event in events if event.kind == "died"] == ["part/3"]

    again, other = make_units(tmp_path, "serial")
    (other / "marker").touch()  # nothing dies
    serial = ProcessPool(1, tmp_path / "logs")
    needed = run_units(again, other / "out", serial)
    serial.close()
    assert not found.failed
    assert not needed.failed
    values = {key: result.value for key, result in found.done.items()}
    assert values == {key: result.value for key, result in needed.done.items()}
    assert values == {"part/3": 9, "part/0": 0, "part/1": 1, "part/2": 4, "last": 81}
    files = [sorted(path.name for path in f.rglob("*.json")) for f in (folder, other)]
    assert files[0] == files[1]


def test_an_error_is_an_answer_and_each_call_has_a_process_of_its_own(pool):
    pool.start("refused", "ray_work:refuse", {"number": 3})
    assert pool.wait() == Outcome("refused", error="3 is too many")
    pids = []
    for key in ("first", "second"):
        pool.start(key, "ray_work:find_pid", {})
        pids.append(pool.wait().value)
    assert pids[0] != pids[1]


def test_a_call_that_needs_more_cores_than_there_are_is_refused(cluster):
    from vlmedge.quant.sweep.ray_pool import RayPool

    with pytest.raises(ValueError, match="has 2 cores, a call needs 3"):
        RayPool("auto", cpus_per_call=3)
    assert RayPool("auto", 8).num_workers == 2
    assert RayPool("auto", 1).num_workers == 1


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:x"])
def test_an_address_where_nothing_listens_is_refused_at_once(address):
    from vlmedge.quant.sweep.ray_pool import knock

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match="no Ray cluster answers at"):
        knock(address.format(port=port))


def test_an_address_where_something_listens_is_knocked_at():
    from vlmedge.quant.sweep.ray_pool import knock

    with socket.create_server(("127.0.0.1", 0)) as server:
        knock(f"127.0.0.1:{server.getsockname()[1]}")
    knock("auto")
