import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.quant.data.vqa_words import ARTICLES, CONTRACTIONS, normalize_textvqa, normalize_words


# Pairs out of the table of vqaEval.py
@pytest.mark.parametrize(
    ("short", "form"),
    [
        ("aint", "ain't"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("hed've", "he'd've"),
        ("maam", "ma'am"),
        ("oclock", "o'clock"),
        ("ow's'at", "'ow's'at"),
        ("'ows'at", "'ow's'at"),
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("somebodyd've", "somebody'd've"),
        ("twas", "'twas"),
        ("y'allll", "y'all'll"),
        ("y'alld've", "y'all'd've"),
        ("youve", "you've"),
    ],
)
def test_short_forms_get_their_apostrophes(short, form):
    assert CONTRACTIONS[short] == form
    assert normalize_words(short) == form


def test_the_table_has_as_many_forms_as_the_original_can_reach():
    # 120 entries there; 4 have a capital, which no lower-cased word has, 2 map to themselves
    assert len(CONTRACTIONS) == 114


@given(st.text(st.sampled_from("aAnthe19 .,;/-'\n\t"), max_size=20))
def test_the_form_is_lower_case_single_spaced_and_without_articles(text):
    words = normalize_words(text).split(" ")
    assert normalize_words(text) == " ".join(normalize_words(text).split())
    assert not ARTICLES.intersection(words)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("a/b", "b"),  # a space, then the article goes
        ("x; y", "x y"),
        ("x;y", "x y"),
        ("x;y z;", "x y z"),
        ("1,000;5", "10005"),  # with thousands in it, all punctuation vanishes
        ("e.g. 3.5.", "eg 3.5"),
        ("Ten OF the", "10 of"),
    ],
)
def test_punctuation_follows_the_original_s_rules(text, form):
    assert normalize_words(text) == form


def test_textvqa_takes_commas_away_first():
    assert normalize_textvqa("1,000;5") == "1000 5"
    assert normalize_textvqa("Joe's?") == "joe 's"
