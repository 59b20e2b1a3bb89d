"""Whatever the gate, what is returned has passed it; if more never harms, nothing can be spared."""

from hypothesis import given
from hypothesis import strategies as st

from vlmedge.quant.auto.moves import Move, apply_moves
from vlmedge.quant.auto.search_moves import search_moves

NAMES = [f"l{i}" for i in range(12)]


def single(name):
    return Move(name, "int8", "float", 0.1, 1.0)


@given(
    st.permutations(NAMES),
    st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_monotone_gate_is_passed_by_moves_none_of_which_can_be_spared(order, enough):
    """The gate holds where one of some sets of layers is in: more never does harm."""

    def holds(moves):
        names = {move.layer for move in moves}
        return any(names >= one for one in enough)

    found = search_moves([single(name) for name in order], holds, 1000)
    assert found.holds
    assert holds(found.moves)
    for move in found.moves:
        assert not holds([other for other in found.moves if other != move])
    names = {move.layer for move in found.moves}
    assert names in enough  # so it is one of the sets, exactly


@given(st.sets(st.sampled_from(NAMES), min_size=1), st.permutations(NAMES))
def test_layers_that_are_all_needed_are_found_exactly(needed, order):
    found = search_moves(
        [single(name) for name in order],
        lambda moves: needed <= {move.layer for move in moves},
        1000,
    )
    assert {move.layer for move in found.moves} == needed


@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_what_is_returned_has_passed_though_the_gate_be_erratic(random, max_tries):
    passed, asked = set(), []

    def holds(moves):
        asked.append(moves)
        answer = random.random() < 0.4
        if answer:
            passed.add(tuple(moves))
        return answer

    found = search_moves([single(name) for name in NAMES], holds, max_tries)
    assert found.num_tries == len(asked) <= max_tries
    assert found.holds == (found.moves in passed)
    assert found.holds or len(found.moves) == len(NAMES)


def test_nothing_is_asked_twice():
    asked = []

    def holds(moves):
        asked.append(tuple(moves))
        return {"l3", "l9"} <= {move.layer for move in moves}

    search_moves([single(name) for name in NAMES], holds, 1000)
    assert len(asked) == len(set(asked))


def test_good_order_needs_few_tries():
    """Three of 200 layers, ranked first: doubling, bisection and three attempts to take back."""
    names = [f"l{i}" for i in range(200)]
    found = search_moves(
        [single(name) for name in names],
        lambda moves: {"l0", "l1", "l2"} <= {move.layer for move in moves},
        1000,
    )
    assert [move.layer for move in found.moves] == ["l0", "l1", "l2"]
    assert found.num_tries <= 8


def test_a_second_step_goes_with_its_first():
    """l0 needs both steps or none: its first can't be taken back from under the second."""
    steps = [
        Move("l0", "int4-weight", "int8-weight", 0.5, 1.0),
        single("l1"),
        Move("l0", "int8-weight", "float", 0.1, 1.0),
    ]
    start = {"l0": "int4-weight", "l1": "int8"}

    def holds(moves):
        choice = apply_moves(start, moves)
        return choice["l1"] == "float" and choice["l0"] != "int8-weight"

    found = search_moves(steps, holds, 100)
    assert found.holds
    assert apply_moves(start, found.moves) == {"l0": "int4-weight", "l1": "float"}
    assert len(found.moves) == 1


def test_no_moves_don_t_pass():
    found = search_moves([], lambda moves: True, 10)
    assert (found.holds, found.moves, found.num_tries) == (False, (), 0)
