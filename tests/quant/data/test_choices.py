import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.quant.data.choices import LETTERS, find_choice, find_open_answers, normalize_open

TEXTS = st.text(st.sampled_from("ABCabc ().:,'cat12"), max_size=12)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=26))
def test_the_choice_is_one_of_the_letters_or_none(response, choices):
    assert find_choice(response, choices) in {None, *LETTERS[: len(choices)]}


@given(st.integers(0, 25), st.sampled_from(["{}", "({})", "{}.", " {}", "It is {}", "So: ({})!"]))
def test_a_plain_letter_is_found_in_every_form(place, form):
    letter = LETTERS[place]
    assert find_choice(form.format(letter), ["#"] * 26) == letter


def test_empty_texts_are_never_found():
    assert find_choice("whatever", ["", ".", " "]) is None


def test_without_choices_nothing_is_chosen():
    assert find_choice("A", []) is None


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("1,234.567", [1234.57]),
        ("Krebs Cycle ", ["krebs cycle"]),
        ("C", [" c", "c "]),  # must stand apart: "c" is in most words
        ("-5", [-5.0]),
    ],
)
def test_open_answers_are_normalized_as_mmmu_does(text, forms):
    assert normalize_open(text) == forms


@pytest.mark.parametrize(
    ("response", "found"),
    [
        # the shortest piece behind a key phrase, and its numbers; the original's patterns also
        # find what follows a comma or an exponent
        ("So the force is 1,200 N", {"1,200 n", 1200.0, 200.0}),
        # "=" announces a result in the last line only
        ("x = 3\ny = 4", {4.0}),
        ("It weighs 1e3 kg", {"it weighs 1e3 kg", 1000.0, 3.0}),
        ("blue", {"blue"}),
    ],
)
def test_open_answers_are_the_key_phrases_and_their_numbers(response, found):
    assert find_open_answers(response) == found
