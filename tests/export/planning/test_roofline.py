"""Times: the slower side of each piece, and factors that are those fitted to published times."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.planning.devices import DEVICES
from vlmedge.export.planning.roofline import FITTED, Factors, estimate_seconds, find_rate
from vlmedge.export.planning.work import Work

BOARD = dataclasses.replace(DEVICES["thor"], bandwidth=100.0, half=1000.0, int8=2000.0, fp8=2000.0)
IDEAL = Factors(memory=1.0, matrix=1.0, launch_us=0.0)


def test_each_piece_takes_as_long_as_its_slower_side():
    computing = Work("a", 5000, "half", 100, 100, 1)  # 5 s against 2 s
    moving = Work("b", 1000, "half", 300, 100, 1)  # 1 s against 4 s
    assert estimate_seconds([computing], BOARD, IDEAL) == pytest.approx(5)
    assert estimate_seconds([moving], BOARD, IDEAL) == pytest.approx(4)
    assert estimate_seconds([computing, moving], BOARD, IDEAL) == pytest.approx(9)


def test_factors_stretch_their_side_and_launches_are_added():
    work = [Work("a", 1000, "int8", 0, 0, 3)]
    factors = Factors(memory=0.5, matrix=0.25, launch_us=1e6)
    assert estimate_seconds(work, BOARD, factors) == pytest.approx(2 + 3)


def test_single_precision_has_half_of_the_half_rate():
    assert find_rate(BOARD, "single") == 500
    assert find_rate(BOARD, "fp8") == 2000


def test_what_a_device_can_not_compute_is_refused():
    with pytest.raises(ValueError, match=r"Orin Nano.* has no rate of fp8"):
        find_rate(DEVICES["orin-nano-8gb"], "fp8")


def test_of_an_unknown_device_no_time_is_made_up():
    unknown = dataclasses.replace(BOARD, bandwidth=0.0)
    with pytest.raises(ValueError, match="are not known"):
        estimate_seconds([], unknown)


@given(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(1, 10**9))
def test_more_work_never_takes_less_time(flops, nbytes, more):
    def seconds(flops, nbytes):
        return estimate_seconds([Work("a", flops, "half", nbytes, 0)], DEVICES["thor"])

    base = seconds(flops, nbytes)
    assert base <= seconds(flops + more, nbytes)
    assert base <= seconds(flops, nbytes + more)


def test_factors_are_shares():
    assert 0 < FITTED.memory < 1
    assert 0 < FITTED.matrix < 1
    assert 0 <= FITTED.launch_us < 50
