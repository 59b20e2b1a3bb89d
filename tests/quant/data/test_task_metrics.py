"""Worked examples by hand from each benchmark's definition, and other implementations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.quant.data.examples import Example
from vlmedge.quant.data.task_metrics import METRICS, score

WORDS = st.text(st.sampled_from("abcde 0123.,%-$XYZé\n"), max_size=24)


def measure(metric, prediction, *answers, choices=()):
    example = Example("1", (), answers, metric=metric, choices=choices)
    return score(prediction, example)


@pytest.mark.parametrize("name", METRICS)
@given(prediction=WORDS, answers=st.lists(WORDS, min_size=1, max_size=10))
def test_every_score_is_between_0_and_1(name, prediction, answers):
    value = measure(name, prediction, *answers, choices=("cat", "12", "X"))
    assert isinstance(value, float)
    assert 0 <= value <= 1


def test_without_a_known_answer_there_is_no_score():
    assert all(measure(name, "anything") is None for name in METRICS)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Marlboro", ["marlboro"], 1.0),  # case counts for nothing
        # one of 8 letters is wrong: 1 - 1/8
        ("marlbora", ["marlboro"], 1 - 1 / 8),
        # 2 of 4 differ: similarity 0.5, which is not below the threshold of 0.5
        ("abxy", ["abcd"], 0.5),
        # 3 of 5 differ: similarity 0.4, below it
        ("abxyz", ["abcde"], 0.0),
        # best of the answers: distance 4 of 13 to the second, the first is far
        ("1 Jan 1998", ["January 1998", "1 Jan 1998 AD"], 1 - 3 / 13),
        ("  two   words ", ["two words"], 1.0),
        ("", ["x"], 0.0),
    ],
)
def test_anls_is_the_similarity_of_the_nearest_answer_and_0_below_a_half(
    prediction, answers, expected
):
    assert measure("anls", prediction, *answers) == pytest.approx(expected)


@given(WORDS, st.lists(WORDS.filter(str.strip), min_size=1, max_size=4))
def test_anls_is_that_of_the_package_anls(prediction, answers):
    anls = pytest.importorskip("anls")
    answers = [" ".join(answer.split()) for answer in answers]  # it keeps inner spaces
    prediction = " ".join(prediction.split())
    theirs = anls.anls_score(prediction=prediction, gold_labels=answers, threshold=0.5)
    ours = measure("anls", prediction, *answers)
    if theirs or ours != 0.5:  # at the threshold it says 0, as the paper does
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("105", "100", 1),  # 5 % off, still accepted
        ("105.1", "100", 0),
        ("-96", "-100", 1),
        ("12%", "0.12", 1),  # percents are fractions
        ("12", "12%", 0),  # 12 against 0.12
        ("12.5%", "12%", 1),  # 0.005 / 0.12 = 4.2 %
        ("Yes", "yes", 1),  # words: all of them, case ignored
        ("yes.", "yes", 0),
        ("0", "0", 1),  # of 0 there are no 5 %: as text
        ("0.0", "0", 0),
        ("100", "hundred", 0),
        (" 21 ", "21", 1),
        ("nan", "5", 0),
    ],
)
def test_relaxed_accuracy_takes_numbers_within_5_percent(prediction, answer, expected):
    assert measure("relaxed_accuracy", prediction, answer) == expected
    assert measure("relaxed_accuracy", prediction, "something else", answer) == expected


# Ten people, k of whom gave the prediction. Leave one out: for the k of them k - 1 others agree,
# for the other 10 - k all k do; each set scores min(1, agreeing / 3).
@pytest.mark.parametrize("metric", ["vqa_accuracy", "textvqa_accuracy"])
@pytest.mark.parametrize(
    ("agreeing", "expected"),
    [
        (0, 0.0),
        (1, 9 * (1 / 3) / 10),  # the one alone scores 0: 0.3
        (2, (2 * (1 / 3) + 8 * (2 / 3)) / 10),  # 0.6
        (3, (3 * (2 / 3) + 7 * 1) / 10),  # 0.9
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_vqa_accuracy_is_the_mean_over_nine_of_ten_people(metric, agreeing, expected):
    answers = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert measure(metric, "red", *answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("The Dog.", "dog"),  # article, case, final period
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # with both apostrophes gone it is no known form
        ("couldnt've", "couldn't've"),
        ("3.5", "3.5"),  # a period before a digit stays
        ("1,000", "1000"),  # commas between digits vanish
        ("t-shirt", "t shirt"),  # a hyphen inside a word is a space
        ("yes, it is", "yes it is"),  # a comma before a space vanishes
        ("ice\ncream", "ice cream"),
    ],
)
def test_vqa_answers_are_compared_in_the_challenge_s_form(prediction, answer):
    # "other" makes the ten differ: equal ones are compared as they stand
    assert measure("vqa_accuracy", prediction, *[answer] * 9, "other") == 1
    assert measure("textvqa_accuracy", prediction, *[answer] * 9, "other") == 1


def test_answers_that_all_agree_are_compared_as_they_stand_by_vqa_but_not_by_textvqa():
    assert measure("vqa_accuracy", "the dog", *["dog"] * 10) == 0
    assert measure("textvqa_accuracy", "the dog", *["dog"] * 10) == 1


def test_textvqa_sets_a_possessive_apart():
    # EvalAI's tokenizer: "mcdonald's" -> "mcdonald 's"
    assert measure("textvqa_accuracy", "mcdonald's", *["mcdonald 's"] * 10) == 1
    assert measure("vqa_accuracy", "mcdonald's", *["mcdonald 's"] * 9, "other") == 0


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "expected"),
    [
        ("ocrbench", "The sign says STOP here", ["stop"], 1),  # the answer somewhere in it
        ("ocrbench", "stop", ["the stop"], 0),  # not the other way round
        ("ocrbench", "first\nsecond", ["x", "first second"], 1),
        ("ocrbench", "a b", ["ab"], 0),
        ("ocrbench_formula", r"$ \frac { 1 } { 2 } $", [r"\frac{1}{2}"], 1),  # spaces vanish
        ("ocrbench_formula", "X ^ 2", ["x^2"], 0),  # case counts
        ("ocrbench_formula", "a\nb", ["ab"], 1),
    ],
)
def test_ocrbench_looks_for_the_answer_in_the_prediction(metric, prediction, answers, expected):
    assert measure(metric, prediction, *answers) == expected


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "expected"),
    [
        ("exact_match", " 12.50\n", ["12.50"], 1),
        ("exact_match", "12.5", ["12.50"], 0),
        ("exact_match", "Tea", ["TEA"], 0),
        ("exact_match", "b", ["a", "b"], 1),
        ("word_match", "Yes.", ["yes"], 1),
        ("word_match", "yes it is", ["yes"], 0),
    ],
)
def test_matches_are_of_the_whole_answer(metric, prediction, answers, expected):
    assert measure(metric, prediction, *answers) == expected


OPTIONS = ("cat", "black cat", "a dog", "12")


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("The answer is (D)", "D"),
        ("A or (C)", "C"),  # brackets count before bare letters
        ("It is not (A) but (B)", "B"),  # the last one
        ("I choose D because B is wrong", "B"),  # the last bare letter, as MMMU has it
        ("D. 12", "D"),
        ("C) a dog", "C"),
        ("black cat", "B"),  # both cats end here: the longer text is meant
        ("It must be 12", "D"),
        ("b", None),  # a small letter is none
        ("E", None),  # there is no such option
        ("", None),
        ("no idea", None),  # MMMU would draw one at random
    ],
)
def test_multiple_choice_finds_the_letter_that_is_meant(prediction, letter):
    scores = {one: measure("multiple_choice", prediction, one, choices=OPTIONS) for one in "ABCD"}
    assert scores == {one: float(one == letter) for one in "ABCD"}


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("So the result is 7.25", ["7.25"], 1),
        ("x = 1,234", ["1234"], 1),  # commas gone
        ("about 3.999", ["4"], 1),  # two decimals: 4.0
        ("about 3.99", ["4"], 0),
        ("The final answer is the Krebs cycle.", ["krebs cycle"], 1),
        ("It is 12 or 13", ["13"], 1),  # any number of the key phrase counts
        ("It is blue", ["e"], 0),  # a single letter must stand apart
        ("the answer is e", ["e"], 1),
        ("between c and d", ["c"], 1),
    ],
)
def test_mmmu_s_open_answers_are_sought_in_key_phrases(prediction, answers, expected):
    assert measure("mmmu_open", prediction, *answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("14", "14", 1),
        ("14.9", "14", 1),  # int(float(...)): cut
        ("The answer is 3, then 14.", "14", 1),  # the last number
        ("0.449", "0.45", 1),  # at the answer's two decimals
        ("0.44", "0.45", 0),
        ("1.20", "1.2", 1),
        ("1,000", "1000", 1),
        ("no number", "0", 0),
        ("9" * 400, "9", 0),  # too large for a float
    ],
)
def test_mathvista_compares_at_the_answer_s_precision(prediction, answer, expected):
    assert measure("mathvista_number", prediction, answer) == expected


def test_cer_and_wer_are_1_minus_the_rate_to_the_nearest_answer():
    # kitten -> sitting: 3 edits over the 6 letters of the answer
    assert measure("cer", "sitting", "kitten") == pytest.approx(1 - 3 / 6)
    # one of three words replaced, one missing
    assert measure("wer", "the bat", "the cat sat") == pytest.approx(1 - 2 / 3)
    assert measure("wer", "the cat sat", "other", "the cat sat") == 1
    assert measure("cer", "far too long an answer", "no") == 0  # a rate over 1 is no less than 0


@given(WORDS.filter(str.strip), WORDS)
def test_cer_counts_the_edits_of_the_textbook_recurrence(answer, prediction):
    answer, prediction = answer.strip(), prediction.strip()
    row = list(range(len(prediction) + 1))
    for i, a in enumerate(answer, 1):
        last, row = row, [i]
        for j, p in enumerate(prediction, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != p)))
    expected = max(0.0, 1 - row[-1] / len(answer))
    assert math.isclose(measure("cer", prediction, answer), expected, abs_tol=1e-12)
