"""The bound on tokens against what the tokenizer makes of texts."""

import json
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vlmedge.runtime.errors import ContextLengthError
from vlmedge.runtime.inputs.messages import read_messages
from vlmedge.runtime.inputs.prompt import ChatTemplate
from vlmedge.runtime.inputs.text_bound import TextBound
from vlmedge.runtime.inputs.tokens import TextTokenizer

# Whole texts in decomposed forms, which NFC shortens up to three times, and long runs.
SHRINKING = ("\u212a", "\u1fef", "e\u0301", "\u1112\u1161\u11ab", "\u03b1\u0313\u0300\u0345")
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [*SHRINKING, "the total of the receipt", "\U00011099\U000110ba", "   ", "<|im_end|>"]
        ),
        st.text(max_size=5),
    ),
    max_size=12,
).map("".join)
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@SHARED
@given(text=PIECES, times=st.integers(1, 20))
def test_no_text_has_fewer_tokens_than_the_bound(tokenizer, text, times):
    text *= times
    assert tokenizer.bound.count_least(text) <= len(tokenizer.encode_text(text))


def test_the_bound_is_reached_by_the_longest_token(tokenizer, tokenizer_file):
    vocab = json.loads(tokenizer_file.read_text())["model"]["vocab"]
    special = {t["content"] for t in json.loads(tokenizer_file.read_text())["added_tokens"]}
    longest = max((token for token in vocab if token not in special), key=len)
    assert tokenizer.bound.longest_bytes == len(longest)
    assert tokenizer.bound.count_least(longest.replace("Ġ", " ")) == 1


def test_every_character_of_this_unicode_is_shortened_as_much_as_the_tokenizer_does(tokenizer):
    reference = tokenizer._tokenizer.normalizer
    for code in range(0x110000):
        text = chr(code)
        if "\ud800" <= text <= "\udfff" or unicodedata.is_normalized("NFD", text):
            continue
        for form in (text, unicodedata.normalize("NFD", text)):
            least = tokenizer.bound.count_least(form * 50) * tokenizer.bound.longest_bytes
            assert least <= len(reference.normalize_str(form * 50).encode()) + 16


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": ""}),
        (
            "pre_tokenizer",
            {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"String": " "},
                        "behavior": "Removed",
                        "invert": False,
                    }
                ],
            },
        ),
    ],
)
def test_nothing_is_said_of_a_tokenizer_that_may_lose_text(tokenizer_file, tmp_path, key, value):
    content = json.loads(tokenizer_file.read_text()) | {key: value}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    bound = TextBound(Tokenizer.from_file(str(path)), frozenset())
    assert bound.count_least("x" * 1_000_000) == 0


@SHARED
@given(text=PIECES, times=st.integers(1, 20), room=st.integers(10, 200))
def test_what_fits_is_never_refused_and_what_is_refused_never_fits(
    template, tokenizer, text, times, room
):
    messages = read_messages([{"role": "user", "content": text * times}])
    ids = template.encode(messages, [])
    try:
        assert template.encode(messages, [], max_tokens=room).tolist() == ids.tolist()
    except ContextLengthError:
        assert len(ids) > room


def test_a_hopeless_text_is_refused_before_it_is_encoded(template, tokenizer, monkeypatch):
    def fail(self, text):
        raise AssertionError("was encoded")

    monkeypatch.setattr(TextTokenizer, "encode_text", fail)
    messages = read_messages([{"role": "user", "content": "the total " * 20_000}])
    with pytest.raises(ContextLengthError, match=r"at least \d+ tokens \(2000\d\d characters"):
        template.encode(messages, [], max_tokens=1000)


def test_a_template_that_drops_text_is_judged_by_what_it_leaves(tokenizer, token_ids):
    template = ChatTemplate("{{ messages[0].content[:10] }}", tokenizer, token_ids)
    messages = read_messages([{"role": "user", "content": "x" * 100_000}])
    assert len(template.encode(messages, [], max_tokens=10)) <= 10
