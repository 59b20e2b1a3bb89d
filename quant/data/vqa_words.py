"""Normalize an answer as the VQA challenge does: no articles, digits, one spelling.

Reproduces, oddities included, PythonEvaluationTools/vqaEvaluation/vqaEval.py of github.com/
GT-Vision-Lab/VQA. Its odd rules: punctuation becomes a space unless it touches one somewhere in the
text or the text holds "1,000", then it vanishes; "none" counts as "0".
"""

from __future__ import annotations

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(DIGITS)} | {"none": "0"}
# Every form with one of its apostrophes left out is brought back to the form.
SHORT_FORMS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
    might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""
CONTRACTIONS = {
    form[: match.start()] + form[match.end() :]: form
    for form in SHORT_FORMS.split()
    for match in re.finditer("'", form)
} | {"somebody'd": "somebodyd"}  # the table has this one the wrong way round


def normalize_words(text: str) -> str:
    """The VQA challenge's form of an answer."""
    text = _strip_punctuation(re.sub(r"[\n\t]", " ", text).strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize_textvqa(text: str) -> str:
    """The same as TextVQA's server does it (EvalAIAnswerProcessor of facebookresearch/mmf)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize_words(text)


def _strip_punctuation(text: str) -> str:
    has_thousands = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if touches_space or has_thousands else " ")
    return re.sub(r"\.(?!\d)", "", stripped)
