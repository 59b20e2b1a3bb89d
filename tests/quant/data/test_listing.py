import pytest

from vlmedge.quant.data import listing
from vlmedge.quant.data.listing import Entry, make_listing


def entries(*names):
    return [Entry(name, "", f"line {i}") for i, name in enumerate(names, 1)]


def test_a_listing_has_its_entries_in_order():
    made = make_listing("x", entries("b", "a"), lambda indices: [])
    assert [entry.id for entry in made.entries] == ["b", "a"]


def test_the_second_of_equal_ids_is_named():
    with pytest.raises(ValueError, match="line 3 has the id 'a' of line 1: ids must differ"):
        make_listing("x", entries("a", "b", "a"), lambda indices: [])


def test_nothing_and_far_too_much_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="x has no examples: real ones are needed"):
        make_listing("x", [], lambda indices: [])
    monkeypatch.setattr(listing, "MAX_EXAMPLES", 2)
    with pytest.raises(ValueError, match="x has over 2 examples"):
        make_listing("x", entries("a", "b", "c"), lambda indices: [])
