"""Phases: one share that rises from 0 to 1, whatever order a builder reports in."""

from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.engines.build_progress import PhaseTracker


def record():
    shares = []
    return shares, PhaseTracker(lambda share, text: shares.append((share, text)))


def test_a_step_within_a_step_is_a_part_of_it():
    shares, tracker = record()
    tracker.start("whole", None, 4)
    tracker.step("whole", 0)
    tracker.start("timing", "whole", 2)
    tracker.step("timing", 0)
    assert shares[-1] == ((1 + 0.5) / 4, "timing")


def test_three_levels_are_told_with_the_innermost_name():
    shares, tracker = record()
    for name, parent, steps in (("a", None, 2), ("b", "a", 2), ("c", "b", 2)):
        tracker.start(name, parent, steps)
    tracker.step("c", 0)
    assert shares[-1] == (0.5 / 2 / 2, "c")


def test_a_phase_that_runs_again_in_the_same_step_does_not_go_back():
    shares, tracker = record()
    tracker.start("whole", None, 2)
    for _ in range(2):
        tracker.start("again", "whole", 2)
        tracker.step("again", 0)
        tracker.step("again", 1)
        tracker.finish("again")
    assert [share for share, _ in shares] == sorted(share for share, _ in shares)
    assert shares[-1][0] == 0.5


def test_a_phase_without_steps_and_one_that_was_never_started_do_no_harm():
    shares, tracker = record()
    tracker.start("empty", "nowhere", 0)
    tracker.step("empty", 5)
    tracker.step("unknown", 1)
    tracker.finish("unknown")
    assert shares[-1] == (1.0, "empty")


NAMES = st.sampled_from("abcd")
EVENTS = st.one_of(
    st.tuples(st.just("start"), NAMES, st.none() | NAMES, st.integers(-1, 5)),
    st.tuples(st.just("step"), NAMES, st.integers(-1, 9)),
    st.tuples(st.just("finish"), NAMES),
)


@given(st.lists(EVENTS, max_size=40))
def test_any_sequence_of_reports_gives_a_share_that_never_falls(events):
    """Parents in a circle too: a builder's callbacks are not ours to trust."""
    shares, tracker = record()
    for name, *args in events:
        getattr(tracker, name)(*args)
    told = [share for share, _ in shares]
    assert told == sorted(told)
    assert all(0 <= share <= 1 for share in told)
