import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.runtime.decode.stopping import StopStrings

LETTERS = st.text("ab", max_size=3)


@given(pieces=st.lists(LETTERS, max_size=12), stops=st.lists(st.text("ab", min_size=1), max_size=3))
def test_stop_strings_cut_alike_however_the_text_arrives(pieces, stops):
    whole = "".join(pieces)
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(s) for s in stops)]
    if ends:  # the stop that is complete first ends the answer, at its earliest start
        upto = whole[: ends[0]]
        needed = upto[: min(upto.find(s) for s in stops if s in upto)]
    else:
        needed = whole
    by_letter, by_piece = StopStrings(stops), StopStrings(stops)
    letters = "".join(map(by_letter.push, whole)) + by_letter.flush()
    got = "".join(map(by_piece.push, pieces)) + by_piece.flush()
    assert by_letter.is_hit == by_piece.is_hit == bool(ends)
    assert letters == needed
    assert needed.startswith(got) or not ends


def test_text_is_held_back_only_while_it_may_be_a_stop():
    stops = StopStrings(["###"])
    assert [stops.push(p) for p in ("a", "#", "#", "b", "#")] == ["a", "", "", "##b", ""]
    assert stops.flush() == "#"


def test_nothing_follows_a_stop():
    stops = StopStrings(["end"])
    assert stops.push("the e") == "the "
    assert stops.push("nd of") == ""
    assert stops.is_hit
    assert stops.push("more") == ""
    assert stops.flush() == ""


@pytest.mark.parametrize("pieces", [["x"], ["", "x"], ["x", ""]])
def test_without_stops_text_passes_at_once(pieces):
    stops = StopStrings([])
    assert [stops.push(p) for p in pieces] == pieces
