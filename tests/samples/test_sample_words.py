import unicodedata

import pytest

pytest.importorskip("matplotlib")
from sample.words import SPECIAL_TOKENS, build_tokenizer, list_texts, render_prompt

TEXTS = [
    "",
    " ",
    "a\n\n\tb",
    "12.50",
    "Ünïcödé",
    "漢字かな",
    "🙂👩‍👩‍👧",
    "שלום",
    "\x00\x7f",
    "{{ x }} <tag> |",
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("text", [*TEXTS, *list_texts()])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == unicodedata.normalize("NFC", text)


def test_digits_stand_alone(tokenizer):
    assert tokenizer.encode("2024.5").tokens == list("2024.5")


def test_our_words_are_one_token_each(tokenizer):
    assert len(tokenizer.encode("How much is the BREAD?").ids) == 6


def test_special_tokens_stand_behind_the_others_in_the_real_order(tokenizer):
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert ids[-1] == tokenizer.get_vocab_size() - 1


def test_the_tokenizer_is_the_same_every_time(tokenizer):
    assert build_tokenizer().to_str() == tokenizer.to_str()


def test_the_prompt_is_the_chat_format():
    assert render_prompt("Read the dial.", "video") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Read the dial.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
