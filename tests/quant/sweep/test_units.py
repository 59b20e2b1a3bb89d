"""Units of work: every one done once, whatever dies on the way."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.sweep.units import Outcome, Unit, fingerprint_units, run_units


class HerePool:
    """Calls a function of this process; what dies and what fails is told beforehand.

    Attributes:
        deaths: key -> how many tries of it die.
        failing: keys that report an error.
        calls: keys in the order of their starts.
        most: the most calls that were under way.
    """

    def __init__(self, num_workers=1, deaths=None, failing=(), pick=0):
        self.num_workers = num_workers
        self.deaths = dict(deaths or {})
        self.failing = frozenset(failing)
        self.calls = []
        self.most = 0
        self._pick = pick
        self._running = {}

    def start(self, key, function, kwargs):
        self.calls.append(key)
        self._running[key] = kwargs
        self.most = max(self.most, len(self._running))

    def wait(self):
        key = list(self._running)[self._pick % len(self._running)]
        kwargs = self._running.pop(key)
        if self.deaths.get(key, 0):
            self.deaths[key] -= 1
            return Outcome(key, death="it was killed")
        if key in self.failing:
            return Outcome(key, error="it said no")
        return Outcome(key, value={"square": kwargs["number"] ** 2})

    def close(self):
        pass


def make_units(needs):
    """Unit i squares i and needs the units of needs[i]."""
    return [
        Unit(f"part/{i}", "any:function", {"number": i}, tuple(f"part/{n}" for n in some))
        for i, some in enumerate(needs)
    ]


@st.composite
def graphs(draw):
    """Needs of each unit, on units before it; shuffled, so that they may come in any order."""
    count = draw(st.integers(1, 8))
    needs = [sorted(draw(st.sets(st.integers(0, i - 1)))) if i else [] for i in range(count)]
    return needs, draw(st.permutations(range(count)))


@settings(max_examples=60, deadline=None)
@given(
    graphs(), st.integers(1, 4), st.integers(0, 5), st.dictionaries(st.integers(0, 7), st.just(2))
)
def test_every_unit_is_done_once_and_after_what_it_needs(
    tmp_path_factory, graph, num_workers, pick, deaths
):
    needs, order = graph
    units = make_units(needs)
    pool = HerePool(num_workers, {f"part/{k}": n for k, n in deaths.items()}, pick=pick)
    folder = tmp_path_factory.mktemp("sweep")
    found = run_units([units[i] for i in order], folder, pool, max_tries=3)
    assert not found.failed
    assert list(found.done) == [f"part/{i}" for i in order]
    assert all(found.done[f"part/{i}"].value == {"square": i * i} for i in range(len(units)))
    assert pool.most <= num_workers
    for i, some in enumerate(needs):
        assert pool.calls.count(f"part/{i}") == (3 if i in deaths else 1)
        last = {key: place for place, key in enumerate(pool.calls)}
        for need in some:
            assert last[f"part/{need}"] < pool.calls.index(f"part/{i}")


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sets(st.integers(0, 7)), st.integers(1, 3))
def test_what_fails_takes_along_only_what_needs_it(tmp_path_factory, graph, failing, num_workers):
    needs, order = graph
    units = make_units(needs)
    lost = set()
    for i, some in enumerate(needs):
        if i in failing or lost & set(some):
            lost.add(i)
    pool = HerePool(num_workers, failing=[f"part/{i}" for i in failing])
    folder = tmp_path_factory.mktemp("sweep")
    found = run_units([units[i] for i in order], folder, pool)
    assert set(found.failed) == {f"part/{i}" for i in lost}
    assert set(found.done) == {f"part/{i}" for i in range(len(units)) if i not in lost}
    for i in lost:
        whose = "it said no" if i in failing and not lost & set(needs[i]) else "needs part/"
        assert found.failed[f"part/{i}"].startswith(whose)
        assert pool.calls.count(f"part/{i}") <= 1  # an error would come again


def test_a_second_run_does_nothing_again(tmp_path):
    units = make_units([[], [0], [0, 1]])
    first = run_units(units, tmp_path, HerePool())
    pool = HerePool()
    events = []
    second = run_units(units, tmp_path, pool, on_event=events.append)
    assert pool.calls == []
    assert [result.value for result in second.done.values()] == [
        result.value for result in first.done.values()
    ]
    assert all(result.is_kept for result in second.done.values())
    assert [(event.kind, event.num_ended) for event in events] == [
        ("kept", 1),
        ("kept", 2),
        ("kept", 3),
    ]


def test_a_run_that_stops_half_way_is_gone_on_with(tmp_path):
    units = make_units([[], [0], [1], [2]])

    class Interrupted(HerePool):
        def wait(self):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().wait()

    with pytest.raises(KeyboardInterrupt):
        run_units(units, tmp_path, Interrupted())
    pool = HerePool()
    found = run_units(units, tmp_path, pool)
    assert pool.calls == ["part/2", "part/3"]
    assert [found.done[f"part/{i}"].value["square"] for i in range(4)] == [0, 1, 4, 9]


@pytest.mark.parametrize(
    "change",
    [{"kwargs": {"number": 5}}, {"inputs": {"data": "b"}}, {"function": "other:function"}],
)
def test_a_change_redoes_a_unit_and_what_needs_it(tmp_path, change):
    unit = Unit("a", "any:function", {"number": 1}, inputs={"data": "a"})
    needing = Unit("b", "any:function", {"number": 2}, ("a",))
    other = Unit("c", "any:function", {"number": 3})
    run_units([unit, needing, other], tmp_path, HerePool())
    fields = {"kwargs": unit.kwargs, "inputs": unit.inputs, "function": unit.function} | change
    pool = HerePool()
    run_units([Unit("a", **fields), needing, other], tmp_path, pool)
    assert pool.calls == ["a", "b"]


def test_means_reach_the_function_but_decide_nothing(tmp_path):
    run_units([Unit("a", "any:function", {}, means={"number": 3})], tmp_path, HerePool())
    pool = HerePool()
    found = run_units([Unit("a", "any:function", {}, means={"number": 4})], tmp_path, pool)
    assert pool.calls == []
    assert found.done["a"].value == {"square": 9}


def test_a_result_whose_output_is_gone_does_not_count(tmp_path):
    output = tmp_path / "bundle"
    output.touch()
    units = [Unit("a", "any:function", {"number": 1}, outputs=(str(output),))]
    run_units(units, tmp_path / "out", HerePool())
    pool = HerePool()
    run_units(units, tmp_path / "out", pool)
    assert pool.calls == []
    output.unlink()
    run_units(units, tmp_path / "out", pool)
    assert pool.calls == ["a"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"value": 1}', "null", "\0\0\0", "{}"])
def test_a_damaged_result_is_made_again(tmp_path, content):
    units = make_units([[]])
    run_units(units, tmp_path, HerePool())
    path = tmp_path / "units" / "part" / "0.json"
    whole = json.loads(path.read_text())
    path.write_text(content)
    pool = HerePool()
    run_units(units, tmp_path, pool)
    assert pool.calls == ["part/0"]
    again = json.loads(path.read_text())
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


def test_a_unit_that_always_dies_is_given_up_after_its_tries(tmp_path):
    events = []
    pool = HerePool(deaths={"part/0": 9})
    found = run_units(make_units([[]]), tmp_path, pool, max_tries=2, on_event=events.append)
    assert found.failed == {"part/0": "it was killed, in each of 2 tries"}
    assert [event.kind for event in events] == ["started", "died", "started", "failed"]
    assert run_units(make_units([[]]), tmp_path, HerePool()).done  # a later run tries it anew


def test_at_once_is_a_limit_below_the_pools(tmp_path):
    pool = HerePool(4)
    run_units(make_units([[], [], []]), tmp_path, pool, at_once=1)
    assert pool.most == 1


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([Unit("a", "f:f", {}), Unit("a", "f:f", {})], "two units are called a"),
        ([Unit("a", "f:f", {}, ("b",))], "the unit a needs b, which is no unit"),
        (
            [Unit("a", "f:f", {}, ("b",)), Unit("b", "f:f", {}, ("a",))],
            "the unit a needs itself, by way of others",
        ),
    ],
)
def test_units_that_cannot_be_ordered_are_refused(tmp_path, units, message):
    with pytest.raises(ValueError, match=message):
        fingerprint_units(units)
    with pytest.raises(ValueError, match=message):
        run_units(units, tmp_path, HerePool())
    with pytest.raises(ValueError, match="max_tries is 0"):
        run_units([], tmp_path, HerePool(), max_tries=0)
