import functools
import gc

import pytest

from vlmedge.runtime.backends.trt.step_graph import GraphPermit, StepGraph
from vlmedge.runtime.errors import BackendError


class Work:
    """Counts how often it was put on the stream, and run there."""

    def __init__(self, driver):
        self.driver, self.stream, self.permit = driver, driver.make_stream(), GraphPermit()
        self.step = StepGraph(driver, self.stream, self.permit)
        self.key, self.num_puts, self.num_runs, self.can_capture = "a", 0, 0, True
        self.fails = False

    def run(self):
        self.step.run(lambda: self.key, self._put, lambda: self.can_capture)
        self.driver.synchronize(self.stream)

    def _put(self):
        if self.fails:
            raise BackendError("refused")
        self.num_puts += 1
        self.driver.put(self.stream, self._do)

    def _do(self):
        self.num_runs += 1


@pytest.fixture
def work(driver):
    return Work(driver)


def test_work_is_put_once_as_it_is_once_recorded_and_then_launched(work):
    for number in range(1, 8):
        work.run()
        assert work.num_runs == number
    assert work.num_puts == 2
    assert work.driver.calls.count("launch") == 6


def test_another_key_begins_again_and_gives_the_old_recording_back(work):
    for number, key in enumerate("aaabbbba", 1):
        work.key = key
        work.run()
        assert work.num_runs == number
    assert work.driver.calls.count("end_capture") == 2
    assert work.driver.graphs == {}


def test_a_key_that_the_work_itself_changes_is_that_of_after_it(work):
    keys = iter("xaaaa")
    work.key = next(keys)
    put = work._put

    def put_and_bind():
        work.key = "bound"
        put()

    work._put = put_and_bind
    for _ in range(3):
        work.run()
    assert (work.num_puts, work.num_runs) == (2, 3)


@pytest.mark.parametrize("call", ["begin_capture", "end_capture"])
def test_a_failed_recording_is_run_as_it_is_and_never_tried_again(work, call):
    work.driver.refuse.add(call)
    for number in range(1, 6):
        work.run()
        assert work.num_runs == number
    assert work.driver.calls.count("begin_capture") == 1
    assert len(work.permit.notices) == 1


def test_work_that_fails_while_recorded_leaves_the_stream_usable(work):
    work.run()
    work.fails = True
    with pytest.raises(BackendError, match="refused"):
        work.run()  # once recorded, once as it is
    assert work.driver.calls.count("abandon_capture") == 1
    assert not work.driver.is_recording()
    work.fails = False
    work.run()
    assert work.num_runs == 2


def test_what_may_not_be_recorded_is_asked_again_three_times(work):
    work.can_capture, asked = False, []
    work.step.run = functools.partial(run_noting, work.step.run, asked)
    for _ in range(8):
        assert work.permit.notices == [] or len(asked) == 4
        work.run()
    assert work.num_runs == work.num_puts == 8
    assert len(asked) == 4
    assert "begin_capture" not in work.driver.calls
    assert len(work.permit.notices) == 1
    assert not work.permit.is_granted


@pytest.mark.parametrize("num_refusals", [1, 3])
def test_what_may_be_recorded_later_is(work, num_refusals):
    work.can_capture = False
    for _ in range(1 + num_refusals):
        work.run()
    work.can_capture = True
    work.run()
    work.run()
    assert work.num_runs == 3 + num_refusals
    assert work.driver.calls.count("end_capture") == 1
    assert work.driver.calls.count("launch") == 2
    assert work.permit.notices == []


def test_refusals_are_counted_anew_after_a_recording(work):
    for answer in range(3):
        work.key = answer
        for may in (False, False, False, False, True):
            work.can_capture = may  # not asked the first time, when it runs as it is
            work.run()
    assert work.driver.calls.count("end_capture") == 3
    assert work.permit.is_granted


def run_noting(run, asked, make_key, enqueue, can_capture):
    """A run that notes each time it is asked whether it may be recorded."""

    def ask():
        asked.append(None)
        return can_capture()

    run(make_key, enqueue, ask)


def test_a_permit_is_shared(driver):
    first, second = Work(driver), Work(driver)
    second.step = StepGraph(driver, second.stream, first.permit)
    first.can_capture = False
    for work in (first,) * 5 + (second,) * 3:
        work.run()
    assert "begin_capture" not in driver.calls


def test_garbage_is_not_collected_while_recording(work):
    """Memory of the device among it would end the recording."""
    seen = []
    put = work._put

    def look():
        seen.append((work.driver.is_recording(), gc.isenabled()))
        put()

    work._put = look
    work.run()
    work.run()
    assert seen == [(False, True), (True, False)]
    assert gc.isenabled()


def test_a_recording_goes_with_its_owner(work):
    for _ in range(3):
        work.run()
    assert len(work.driver.graphs) == 1
    work.step = None
    gc.collect()
    assert work.driver.graphs == {}
